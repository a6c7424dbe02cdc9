"""A tokenizer as llama.cpp's metadata. It has an algorithm of its own for each kind, and reads no `tokenizer.json`:
what its algorithms can't follow is refused, and what they do in another way is said in a sentence."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

from anyformer.checkpoint.gguf.tokenizer_reader import (
    BYTE,
    CONTROL,
    KEY,
    NORMAL,
    PRETOKENIZERS,
    ROLES,
    UNKNOWN,
    UNUSED,
    USER,
)
from anyformer.config import ModelConfig
from anyformer.errors import UserError, quote
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.sentencepiece import SPACE

_COMPOSED = ("NFC", "NFKC")
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Ends of a text, a turn and a message; generation stops at each."""


@dataclass
class _Entries:
    """Entries of llama.cpp's vocabulary, by token id.

    Attributes:
        tokens: Their texts; no two are alike.
        token_types: llama.cpp finds control tokens in a text where it is asked to, and users' tokens always.
        before, after: The ids around every text.
        scores: For tokenizers that go by scores.
    """

    tokens: list[str]
    token_types: list[int]
    before: list[int]
    after: list[int]
    scores: list[float] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int, notes: list[str]) -> "_Entries":
        """Entries of a tokenizer, filled up to the size of the model's token table. Raises UserError if it has more."""
        named = {id_: token for token, id_ in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        rows = tokenizer.table_size
        highest = max((id_ for id_ in named if id_ < rows), default=-1)
        if highest >= size:
            sizes = f"The tokenizer has ids up to {highest} and the model only {size} tokens"
            raise UserError(f"{sizes}: they do not belong together.")
        added = tokenizer.backend.get_added_tokens_decoder()
        tokens = [named.get(i, f"[PAD{i}]") for i in range(size)]
        token_types = [NORMAL if i in named else UNUSED for i in range(size)]
        for i, token in ((i, token) for i, token in added.items() if i < size):
            token_types[i] = CONTROL if token.special else USER
        if spaced := [token.content for token in added.values() if token.lstrip or token.rstrip or token.single_word]:
            more = f" and {len(spaced) - 1} more" if len(spaced) > 1 else ""
            notes.append(
                f"llama.cpp takes special tokens as they are written, and leaves the spaces around {quote(spaced[0])}"
                f"{more} which this tokenizer swallows, or finds it inside words where this one does not."
            )
        return cls(tokens, token_types, *_around(tokenizer))

    def metadata(self) -> dict[str, Any]:
        """The keys of the entries. Raises UserError for two tokens alike, of which llama.cpp would keep but one."""
        token, count = next(iter(Counter(self.tokens).most_common(1)), ("", 0))
        if count > 1:
            raise UserError(f"Two tokens of this vocabulary would both be {quote(token)} to llama.cpp.")
        scores = {} if self.scores is None else {"scores": self.scores}
        return {"tokens": self.tokens, "token_type": self.token_types, **scores}

    def around(self) -> dict[str, Any]:
        """The keys for at most one token before every text and one after it. Raises UserError for more."""
        if len(self.before) > 1 or len(self.after) > 1:
            raise UserError(
                f"This tokenizer puts {len(self.before)} tokens before a text and {len(self.after)} after it; "
                "llama.cpp puts at most one at each end."
            )
        ids = {"bos_token_id": self.before, "eos_token_id": self.after}
        flags = {"add_bos_token": bool(self.before), "add_eos_token": bool(self.after)}
        return flags | {key: end[0] for key, end in ids.items() if end}


def _roles(tokenizer: Tokenizer | None, config: ModelConfig) -> dict[str, Any]:
    """The ids of tokens with a role; the model's own word on where a text begins and ends counts first."""
    tokens = config.special_tokens
    ids = {} if tokenizer is None else {key: getattr(tokenizer, role) for role, key in ROLES.items()}
    ends = dict(zip(_ENDS, tokens.eos, strict=False))
    own = {"bos_token_id": tokens.bos, "padding_token_id": tokens.pad, **ends}
    ids |= {key: id_ for key, id_ in own.items() if id_ is not None}
    return {key: id_ for key, id_ in ids.items() if id_ is not None and id_ < config.vocab_size}


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    for text in ("a", "0", "."):
        plain, whole = tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer.backend.encode(text).ids
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
    raise UserError("What this tokenizer puts around a text can't be told, so llama.cpp can't be told either.")


def tokenizer_metadata(tokenizer: Tokenizer | None, config: ModelConfig, notes: list[str]) -> dict[str, Any]:
    """The metadata of a tokenizer. `notes` gets a sentence for everything that llama.cpp does in another way.

    Raises UserError for a tokenizer that llama.cpp can't follow, saying why.
    """
    if (ends := len(config.special_tokens.eos)) > len(_ENDS):
        notes.append(f"A GGUF file has {len(_ENDS)} tokens that end a text, of the model's {ends}.")
    # The tokenizer's keys are where llama.cpp looks for the number of segments.
    segments = {} if config.decoder_layers else {"token_type_count": max(1, config.embedding.segments)}
    if tokenizer is None:
        notes.append("The model has no tokenizer, so llama.cpp can be given token ids but no text.")
        return _prefixed({"model": "none", **_roles(None, config), **segments})
    entries = _Entries.of(tokenizer, config.vocab_size, notes)
    pipeline = json.loads(tokenizer.backend.to_str())
    kind = pipeline["model"]["type"]
    if kind == "BPE" and pipeline["model"].get("byte_fallback"):
        kind = "SentencePiece"
    _require(kind in _KINDS, f"llama.cpp has no tokenizer of the kind {kind}")
    metadata = _KINDS[kind](pipeline, entries, notes)
    template = {} if tokenizer.chat_template is None else {"tokenizer.chat_template": tokenizer.chat_template}
    return _prefixed({**_roles(tokenizer, config), **metadata, **entries.metadata(), **segments}) | template


def _require(is_possible: object, reason: str) -> None:
    if not is_possible:
        raise UserError(f"{reason}.")


def _prefixed(metadata: dict[str, Any]) -> dict[str, Any]:
    return {f"{KEY}{key}": value for key, value in metadata.items()}


def _byte_bpe(pipeline: Any, entries: _Entries, notes: list[str]) -> dict[str, Any]:
    """BPE over bytes written in 256 printable characters, llama.cpp's `gpt2` (Radford et al. 2019)."""
    model, normalizer = pipeline["model"], pipeline.get("normalizer")
    _require(
        model["merges"], "llama.cpp has no character-level tokenizer: train with --tokenizer bpe:8192, for example"
    )
    marks = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    _require(not marks, "llama.cpp's BPE knows no marks at the ends of words, which this tokenizer has")
    if normalizer is not None:
        form = normalizer["type"]
        _require(form in _COMPOSED, f"llama.cpp does not change text before BPE, as this tokenizer does ({form})")
        notes.append(_not_composed(form))
    pre = _pretokenizer_name(pipeline.get("pre_tokenizer"), bool(model.get("ignore_merges")), normalizer is not None)
    pairs = cast("list[str | list[str]]", model["merges"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    return {"model": "gpt2", "pre": pre, "merges": merges, "add_space_prefix": False, **entries.around()}


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that `ByteLevel` splits by where it splits."""
_INEXACT = ("tekken", "falcon", "default")
"""Names under which llama.cpp splits some texts in another way than the tokenizers that go by them."""


def _pretokenizer_name(pre_tokenizer: Any, ignores_merges: bool, composes: bool) -> str:
    """llama.cpp's name for the pre_tokenizer of a tokenizer.json, as `PRETOKENIZERS` describe them.

    It has each of them compiled in, and a file only names one (`tokenizer.ggml.pre`): another way of splitting gives
    other tokens. It never composes text, but some names promise it, and those come first. Raises UserError where there
    is no name for it.
    """
    steps = _steps(pre_tokenizer)
    for composed in (True, False) if composes else (False,):
        for each in PRETOKENIZERS:
            fits = each.name not in _INEXACT and (each.ignores_merges, each.composes) == (ignores_merges, composed)
            if fits and steps == _steps(json.loads(cast("Any", each.build()).__getstate__())):
                return each.name
    raise UserError(
        "llama.cpp has no name for the way this tokenizer cuts words (its pre_tokenizer); it knows those of GPT-2, "
        "SmolLM, LLaMA 3 and Qwen2, the last of which `anyformer train` makes."
    )


def _steps(part: Any) -> list[tuple[str, ...]]:
    """The steps in one notation, as the same way can be written in several forms."""
    kind = part["type"] if part else "nothing"
    if kind == "Sequence":
        return [step for inner in cast("list[Any]", part["pretokenizers"]) for step in _steps(inner)]
    if kind == "Digits" and part.get("individual_digits"):
        return [("digits",)]
    if kind == "Split" and part["behavior"] == "Isolated" and not part.get("invert") and "Regex" in part["pattern"]:
        return [("split", str(part["pattern"]["Regex"]))]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return [("split", _GPT2), ("bytes",)] if part.get("use_regex", True) else [("bytes",)]
    return [("other", str(kind))]


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def _sentencepiece_bpe(pipeline: Any, entries: _Entries, notes: list[str]) -> dict[str, Any]:
    """SentencePiece's BPE with bytes for what it does not know, llama.cpp's `llama` (Kudo & Richardson 2018).

    It has scores where `tokenizer.json` has merges: the two neighbors that make the best token are joined.
    """
    model = pipeline["model"]
    prefix = _adds_space(pipeline, notes)
    has_bytes = set(entries.tokens).issuperset(f"<0x{byte:02X}>" for byte in range(256))
    _require(has_bytes, "llama.cpp's SentencePiece tokenizer needs a token for every byte, which this one lacks")
    entries.scores = _merge_scores(model, entries.tokens)
    for i, token in enumerate(entries.tokens):
        if _BYTE.fullmatch(token) and entries.token_types[i] == NORMAL:
            entries.token_types[i] = BYTE
        elif token == model.get("unk_token"):
            entries.token_types[i] = UNKNOWN
    return {"model": "llama", "pre": "default", "add_space_prefix": prefix, **entries.around()}


def _merge_scores(model: Any, tokens: Sequence[str]) -> list[float]:
    """The score of each token: minus the rank of its first merge.

    Raises UserError where scores can't stand for these merges. Runs of a character that are as good as each other
    (Gemma's spaces, tabs and line ends) share a rank.
    """
    not_scores = UserError(
        "llama.cpp can't follow this tokenizer: it joins any two neighbors that make a token, best score first, and "
        "these merges are not in such an order."
    )
    pairs = [cast("tuple[str, str]", tuple(p.split(" ") if isinstance(p, str) else p)) for p in model["merges"]]
    first: dict[str, int] = {}
    scattered: set[str] = set()
    last = ""
    for rank, (left, right) in enumerate(pairs):
        token = left + right
        if token != last and token in first:
            scattered.add(token)
        first.setdefault(token, rank)
        last = token
    if scattered:
        runs = None if any(len({*token}) > 1 for token in scattered) else _runs(pairs, scattered)
        if runs is None:
            raise not_scores
        first |= runs
    vocabulary, made = set(model["vocab"]), set(pairs)
    for pair in ((token[:cut], token[cut:]) for token in first for cut in range(1, len(token))):
        if vocabulary.issuperset(pair) and pair not in made:
            raise not_scores
    # A token that nothing makes is a single character, or one that is found before any merging.
    return [float(-first[token]) if token in first else float(-len(pairs)) for token in tokens]


def _runs(pairs: Sequence[tuple[str, str]], scattered: Set[str]) -> dict[str, int] | None:
    """The rank of every run of the characters that these runs are of; None where one rank can't stand for them all.

    A run grows from its left end, by one character at a time, before anything else is made of that character: so it
    does in llama.cpp, which joins the leftmost of neighbors that are as good as others.
    """
    lengths: dict[str, list[tuple[int, int]]] = {token[0]: [] for token in scattered}
    first, used = len(pairs), set[str]()
    for rank, (left, right) in enumerate(pairs):
        characters = {*left, *right}
        if len(characters) == 1 and left[0] in lengths:
            if not used.isdisjoint(characters):
                return None
            lengths[left[0]].append((len(left), len(right)))
            first = min(first, rank)
        else:
            used |= characters
    for found in lengths.values():
        longest = max(map(sum, found), default=0)
        if found != [(left, right) for left in range(longest - 1, 0, -1) for right in range(longest - left, 0, -1)]:
            return None
    return {character * count: first for character, found in lengths.items() for count in range(2, found[0][0] + 2)}


_GEMMA_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Gemma's pre_tokenizer, which finds no space: its normalizer has replaced them all."""


def _adds_space(pipeline: Any, notes: list[str]) -> bool:
    """Whether a text gets a space at its beginning. Raises UserError for other changes to it."""
    normalizer, pre_tokenizer = pipeline.get("normalizer"), pipeline.get("pre_tokenizer")
    steps = [
        (part["type"], part.get("prepend"), (part.get("pattern") or {}).get("String"))
        for part in _steps_of(normalizer, "normalizers")
    ]
    replace = ("Replace", None, " ")
    if steps == [replace] and pre_tokenizer == _GEMMA_SPLIT:
        return False
    if pre_tokenizer is None and steps in ([("Prepend", SPACE, None), replace], [replace]):
        return len(steps) > 1
    metaspace = {} if pre_tokenizer is None or pre_tokenizer["type"] != "Metaspace" else pre_tokenizer
    if not steps and metaspace and not metaspace.get("split", True):
        scheme = metaspace["prepend_scheme"]
        if scheme == "never":
            return False
        locations = {
            "first": "after special tokens inside a text and before one that begins with a space",
            "always": "before a text that begins with a space",
        }
        notes.append(f"llama.cpp puts a space {locations[scheme]}; this tokenizer puts none there.")
        return True
    raise UserError("llama.cpp can't prepare text as this tokenizer does (its normalizer and pre_tokenizer).")


_BERT = ("BertNormalizer", "BertPreTokenizer")


def _word_piece(pipeline: Any, entries: _Entries, notes: list[str]) -> dict[str, Any]:
    """BERT's WordPiece, llama.cpp's `bert` (Devlin et al. 2018).

    llama.cpp marks the tokens that begin a word, as SentencePiece does, and not those that go on with one: `token` is
    written `▁token`, and `##ise` is written `ise`.
    """
    model, normalizer = pipeline["model"], pipeline.get("normalizer") or {"type": "nothing"}
    pre_tokenizer = pipeline.get("pre_tokenizer") or {"type": "nothing"}
    name, is_bert = "llama.cpp's WordPiece", (normalizer["type"], pre_tokenizer["type"]) == _BERT
    _require(is_bert, f"{name} cleans and cuts text as BERT does, and this tokenizer does not")
    cleans = normalizer["clean_text"] and normalizer["handle_chinese_chars"]
    _require(cleans, f"{name} always cleans text and parts Chinese characters; this tokenizer doesn't")
    surrounds = len(entries.before) == len(entries.after) == 1
    _require(surrounds, f"{name} puts one token before a text and one after it; this tokenizer doesn't")
    prefix = str(model["continuing_subword_prefix"])
    for i, (token, kind) in enumerate(zip(entries.tokens, entries.token_types, strict=True)):
        if kind not in (CONTROL, UNUSED):
            entries.tokens[i] = token.removeprefix(prefix) if token.startswith(prefix) else SPACE + token
    notes.append(
        f"llama.cpp also cuts up words of more than {model['max_input_chars_per_word']} characters, which this "
        "tokenizer gives up on."
    )
    lowercase, accents = bool(normalizer["lowercase"]), normalizer["strip_accents"]
    ids = {"bos_token_id": entries.before[0], "seperator_token_id": entries.after[0]}
    folds = {"lowercase": lowercase, "strip_accents": lowercase if accents is None else bool(accents)}
    return {"model": "bert", "pre": "default", **ids, **{f"normalizer.{key}": value for key, value in folds.items()}}


def _unigram(pipeline: Any, entries: _Entries, notes: list[str]) -> dict[str, Any]:
    """SentencePiece's unigram model, llama.cpp's `t5` (Kudo 2018)."""
    model = pipeline["model"]
    name, bytes_ = "llama.cpp's unigram tokenizer", model.get("byte_fallback")
    _require(not bytes_, f"{name} does not write unknown characters as bytes; this one does")
    _require(model.get("unk_id") is not None, f"{name} needs a token for what is unknown, which this one lacks")
    pieces = cast("list[tuple[str, float]]", model["vocab"])
    entries.scores = [float(pieces[i][1]) if i < len(pieces) else 0.0 for i in range(len(entries.tokens))]
    entries.token_types[model["unk_id"]] = UNKNOWN
    return {
        "model": "t5",
        "pre": "default",
        "unknown_token_id": model["unk_id"],
        **_spaces(pipeline.get("pre_tokenizer"), notes),
        **_characters(pipeline.get("normalizer"), notes),
        **entries.around(),
    }


def _characters(normalizer: Any, notes: list[str]) -> dict[str, Any]:
    """SentencePiece's table of characters, where there is one. Raises UserError for other changes to the text."""
    table: dict[str, Any] = {}
    for part in _steps_of(normalizer, "normalizers"):
        if part["type"] == "Precompiled" and not table:
            table["precompiled_charsmap"] = base64.b64decode(part["precompiled_charsmap"])
        elif part["type"] in _COMPOSED:
            notes.append(_not_composed(part["type"]))
        else:
            is_table = table and part["type"] in ("Strip", "Replace")
            _require(is_table, f"llama.cpp can't prepare text as this tokenizer does ({part['type']})")
    return table


def _spaces(pre_tokenizer: Any, notes: list[str]) -> dict[str, Any]:
    """Whether runs of spaces count as one. Raises UserError for a way of cutting words that llama.cpp can't follow."""
    parts = _steps_of(pre_tokenizer, "pretokenizers")
    kinds = [part["type"] for part in parts]
    prefixes = kinds[-1:] == ["Metaspace"] and parts[-1]["replacement"] == SPACE
    prefixes = prefixes and parts[-1]["prepend_scheme"] != "never"
    splits_lines = kinds[:-1] == ["Split"] and parts[0]["pattern"] == {"String": "\n"}
    is_possible = prefixes and (kinds[:-1] in ([], ["WhitespaceSplit"]) or splits_lines)
    _require(is_possible, "llama.cpp can't cut words as this tokenizer does (its pre_tokenizer)")
    joins = len(kinds) > 1 and not splits_lines
    if not joins:
        notes.append(
            "llama.cpp puts a space before a text, or the rest of one after a special token, that begins with a space; "
            "this tokenizer puts none there."
        )
    return {"add_space_prefix": True, "remove_extra_whitespaces": joins}


def _steps_of(part: Any, field: str) -> list[Any]:
    """The steps of a normalizer or pre_tokenizer, which may be a sequence of them or none."""
    return [] if part is None else part.get(field, [part])


def _not_composed(form: str) -> str:
    return (
        f"llama.cpp does not bring text into the form {form} first, as this tokenizer does: text that is in another "
        "form gets other tokens."
    )


_KINDS: Mapping[str, Callable[[Any, _Entries, list[str]], dict[str, Any]]] = {
    "BPE": _byte_bpe,
    "SentencePiece": _sentencepiece_bpe,
    "WordPiece": _word_piece,
    "Unigram": _unigram,
}
