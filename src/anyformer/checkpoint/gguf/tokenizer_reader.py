"""The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`), as the `tokenizers` pipeline that gives its ids.

model   what it is                         rebuilt as
gpt2    byte-level BPE                     BPE, words split as `tokenizer.ggml.pre` says
llama   SentencePiece BPE, with scores     BPE whose merges follow from the scores, bytes for what is unknown
bert    WordPiece; `##` is left out there, and words begin with ▁
t5      SentencePiece Unigram
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from anyformer.errors import UserError, quote
from anyformer.families.base import supported
from anyformer.tokenizer.core import Tokenizer
from anyformer.tokenizer.files import CONVENTIONS
from anyformer.tokenizer.library import WORD_PATTERN, add, byte_words, surround, translated, word_piece
from anyformer.tokenizer.sentencepiece import SPACE, pipeline, unigram_model

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Values of token_type."""
ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so misspelt in the format
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "cls": "cls_token_id",
}
_LONGEST = 1024

_THREE_DIGITS = WORD_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""LLaMA 3's and OpenAI's cl100k_base."""
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


_gpt2 = partial(pre_tokenizers.ByteLevel, add_prefix_space=False)


@dataclass(frozen=True)
class Pretokenizer:
    """The splitting of text into words before byte-level BPE. GGUF files carry no patterns, only a name (`pre`)."""

    names: str
    """Names in llama.cpp, separated by spaces; the first is written."""
    build: Callable[[], pre_tokenizers.PreTokenizer]
    ignores_merges: bool = False
    """A word that is a token stays whole, whatever the merges say."""
    adds_bos: bool = False
    """A text begins with the first special token, unless the file says otherwise."""
    composes: bool = False
    """Characters are brought into their composed form (NFC) first. llama.cpp leaves that out."""

    @property
    def name(self) -> str:
        """The name that is written."""
        return self.names.split()[0]


PRETOKENIZERS = (
    Pretokenizer(
        "gpt-2 phi-2 roberta-bpe olmo mpt jais trillion exaone4 modern-bert mellum gigachat jina-es jina-de jina-v1-en "
        "jina-v2-es jina-v2-de jina-v2-code",
        _gpt2,
    ),
    Pretokenizer(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()]),
    ),
    Pretokenizer("llama-bpe llama3 llama-v3 falcon3 pixtral lfm2", partial(byte_words, _THREE_DIGITS), True, True),
    Pretokenizer("dbrx smaug-bpe glm4 chatglm-bpe", partial(byte_words, _THREE_DIGITS)),
    Pretokenizer("qwen2 deepseek-r1-qwen megrez hunyuan solar-open grok-2", byte_words, composes=True),
    Pretokenizer("stablelm2", byte_words),
    Pretokenizer("tekken", partial(byte_words, _TEKKEN), True, True),
    Pretokenizer("falcon", partial(byte_words, _PUNCTUATION.replace("]", "`]"), _GPT2_PATTERN, "[0-9][0-9][0-9]")),
    Pretokenizer("default", partial(byte_words, _PUNCTUATION, _GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]")),
)

_BY_NAME = {name: pretokenizer for pretokenizer in PRETOKENIZERS for name in pretokenizer.names.split()}


class _Source:
    """The metadata, with a sentence for whatever is missing or misshapen in it."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(self.texts("tokens"))]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.ids[token] != i)
            raise UserError(f"The vocabulary has the token {quote(twice)} twice.")
        if max(map(len, self.tokens), default=0) > _LONGEST:
            raise UserError(f"The vocabulary has a token of more than {_LONGEST} characters.")
        self.types = [int(value) for value in self.numbers("token_type")] or [1] * len(self.tokens)
        self.roles = {
            role: self.tokens[index]
            for role, key in ROLES.items()
            if isinstance(index := self.get(key), int) and 0 <= index < len(self.tokens)
        }

    def get(self, key: str) -> Any:
        return self.metadata.get(KEY + key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return value if isinstance(value, bool) else default

    def texts(self, key: str) -> list[str]:
        value: object = self.get(key)
        if not isinstance(value, list) or not set(map(type, cast("list[object]", value))) <= {str}:
            raise UserError(f"{KEY}{key} should be a list of texts.")
        return cast("list[str]", value)

    def numbers(self, key: str) -> list[float]:
        """One number for each token, or none at all."""
        value: Any = self.get(key)
        if value is None:
            return []
        if isinstance(value, str | int | float) or len(value) != len(self.tokens):
            raise UserError(f"{KEY}{key} should have a number for each of the {len(self.tokens)} tokens.")
        try:
            return [float(number) for number in value]
        except ValueError as error:
            raise UserError(f"{KEY}{key} should be a list of numbers.") from error

    def scores(self) -> list[float]:
        if scores := self.numbers("scores"):
            return scores
        raise UserError(f"{KEY}scores is missing, so texts can't be cut into tokens.")

    def unknown(self) -> str | None:
        """The unknown token: the one declared, or marked."""
        marked = [token for token, kind in zip(self.tokens, self.types, strict=True) if kind == UNKNOWN]
        return self.roles.get("unk") or (marked[0] if marked else None)


def read(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None where it has none.

    Raises UserError for a kind of tokenizer or a pre-tokenizer that is not supported, or metadata that is damaged.
    """
    kind = str(metadata.get(KEY + "model", "none"))
    if kind in ("none", "no_vocab"):
        return None
    build = supported(_KINDS, kind, "The tokenizer model")
    with translated("The tokenizer's metadata does not fit together"):
        source = _Source(metadata)
        backend = build(source)
        return Tokenizer(backend, _config(source))


def _config(source: _Source) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in source.roles.items()},
    }
    length = source.metadata.get(f"{source.metadata.get('general.architecture')}.context_length")
    if isinstance(length, int) and length > 0:
        config["model_max_length"] = length
    template = source.metadata.get("tokenizer.chat_template")
    return {**config, "chat_template": template} if isinstance(template, str) else config


def _byte_level(source: _Source) -> tokenizers.Tokenizer:
    words = supported(_BY_NAME, source.get("pre") or "default", "The pre-tokenizer")
    merges = [(merge[:at], merge[at + 1 :]) for merge in source.texts("merges") if (at := merge.find(" ", 1)) > 0]
    backend = tokenizers.Tokenizer(models.BPE(source.ids, merges, ignore_merges=words.ignores_merges))
    if words.composes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = words.build()
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, source, bos=words.adds_bos, eos=False)
    return backend


def _sentencepiece(source: _Source) -> tokenizers.Tokenizer:
    """SentencePiece's BPE joins the neighbors whose union has the highest score (Kudo & Richardson 2018)."""
    unknown = source.unknown()
    model = models.BPE(
        source.ids, _merges(source), unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in source.types
    )
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    prefixed = source.flag("add_space_prefix", True)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefixed else parts)
    _add_special(backend, source, bos=True, eos=False)
    return backend


def _merges(source: _Source) -> list[tuple[str, str]]:
    """All pairs of tokens whose union is a token, the best first.

    Of pairs as good llama.cpp joins the leftmost, so that runs of one character (Gemma's) grow from their left end: by
    pairs, those with the longest left part. What users defined is found in a text before anything is joined, unless
    it has the mark of a space, which the text has not yet.
    """
    tokens, id_of = source.tokens, source.ids.get
    halves = [
        (-score, -length, left, right)
        for token, score, kind in zip(tokens, source.scores(), source.types, strict=True)
        if kind not in (UNKNOWN, CONTROL, BYTE) and (kind != USER or SPACE in token)
        for length in range(1, len(token))
        if (left := id_of(token[:length])) is not None and (right := id_of(token[length:])) is not None
    ]
    return [(tokens[left], tokens[right]) for *_, left, right in sorted(halves)]


def _word_piece(source: _Source) -> tokenizers.Tokenizer:
    """BERT's WordPiece (Devlin et al. 2018)."""
    names = [_word_piece_name(token, kind) for token, kind in zip(source.tokens, source.types, strict=True)]
    ids = {name: i for i, name in enumerate(names)}
    declared = {role: names[source.ids[token]] for role, token in source.roles.items()}
    defaults = {role: token for role, token in CONVENTIONS[0].items() if token in ids}
    if "bos" in declared:  # [CLS] goes by both names
        defaults["cls"] = declared["bos"]
    source.roles = {role: token for role, token in {**defaults, **declared}.items() if role not in ("bos", "eos")}
    missing = [role for role in ("unk", "cls", "sep") if role not in source.roles]
    if missing:
        raise UserError(f"The vocabulary has no token for the role {quote(missing[0])}, so it is not BERT's.")
    # Older files do not say whether text is folded to lower case, but if it is, no word has a capital.
    words = (name for name, kind in zip(names, source.types, strict=True) if kind == 1 and not name.startswith("["))
    lower = source.flag("normalizer.lowercase", all(word == word.lower() for word in words))
    accents = source.flag("normalizer.strip_accents", lower)
    config = {"do_lower_case": lower, "strip_accents": None if accents == lower else accents}
    unk, cls, sep = (source.roles[role] for role in ("unk", "cls", "sep"))
    backend = word_piece(ids, config, unk, cls, sep)
    source.tokens, source.ids = names, ids
    _add_special(backend, source, bos=False, eos=False)
    return backend


def _word_piece_name(token: str, kind: int) -> str:
    """BERT's own spelling."""
    if token.startswith(SPACE) and len(token) > 1:
        return token[1:]
    bracketed = token.startswith("[") and token.endswith("]") and len(token) > 2
    return token if kind in (UNKNOWN, CONTROL, USER, UNUSED) or bracketed else f"##{token}"


def _unigram(source: _Source) -> tokenizers.Tokenizer:
    unknown = source.unknown()
    if unknown is None:
        raise UserError("The vocabulary has no unknown token.")
    charsmap: Any = source.get("precompiled_charsmap")
    charsmap = b"" if charsmap is None else bytes(charsmap.astype("u1"))
    backend = pipeline(unigram_model(source.tokens, source.scores(), source.ids[unknown]), charsmap)
    if not source.flag("remove_extra_whitespaces", True):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=True)
        backend.decoder = decoders.Metaspace(SPACE, prepend_scheme="first", split=True)
    _add_special(backend, source, bos=False, eos=True)
    return backend


def _add_special(backend: tokenizers.Tokenizer, source: _Source, *, bos: bool, eos: bool) -> None:
    """Let control tokens, and those that users defined, be found in a text as they are, and put some around it.

    Args:
        bos, eos: Whether that token is around a text by default, for files that do not say it.
    """
    roles = source.roles
    typed = zip(source.tokens, source.types, strict=True)
    marked = [(token, kind) for token, kind in typed if kind in (CONTROL, USER) or token in roles.values()]
    add(backend, [AddedToken(token, normalized=False, special=kind != USER) for token, kind in marked])
    before = roles.get("bos") if source.flag("add_bos_token", bos) else None
    after = roles.get("eos") if source.flag("add_eos_token", eos) else None
    surround(backend, before, after)


_KINDS: dict[str, Callable[[_Source], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": _word_piece,
    "t5": _unigram,
}
