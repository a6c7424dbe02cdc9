"""Training a tokenizer on text: characters, byte-level BPE, WordPiece, Unigram.

The special tokens follow the objective:
    causal           <|endoftext|> between documents; for characters only if there is more than one document, so that
                     a single text has a vocabulary of exactly its distinct characters
    masked           [PAD] [UNK] [CLS] [SEP] [MASK] as the first five, and `[CLS] text [SEP]` around a text, as BERT
                     has it
    seq2seq          <pad> </s> <unk> as the first three, and </s> after a text, as T5 has it
    span_corruption  those of seq2seq, and the sentinels <extra_id_99> ... <extra_id_0> as the last hundred, as T5 has
                     them; of a small vocabulary they are no more than a tenth
    any              <s> <pad> </s> <unk> <mask>, as RoBERTa has them, and the sentinels: for models of every kind that
                     share a tokenizer; nothing is put around a text
WordPiece and Unigram always have an unknown token. For characters it exists only where the objective has one.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Protocol

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from anyformer.errors import UserError, nearest, quote
from anyformer.tokenizer.library import add, byte_words, surround, surround_sentences

END_OF_TEXT = "<|endoftext|>"

SPECIAL: dict[str, dict[str, str]] = {
    "causal": {"eos": END_OF_TEXT},
    "masked": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "seq2seq": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "span_corruption": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "any": {
        "bos": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "unk": "<unk>",
        "mask": "<mask>",
        "cls": "<s>",
        "sep": "</s>",
    },
}

LARGEST = 1_000_000
"""Tokens of a vocabulary that is trained: four times as many as those of large models. Memory for them is taken at
once."""
SENTINELS = 100
"""Sentinels of T5's vocabulary: enough for a context of 2,000 tokens."""


def train(
    texts: Iterable[str | Piece], spec: str, *, special: str = "causal", lowercase: bool = False
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Train, and return the backend and its tokenizer_config. See `Tokenizer.train`."""
    kind, size = parse_spec(spec)
    if special not in SPECIAL:
        raise UserError(f"There is no set of special tokens called {quote(special)}: {nearest(special, SPECIAL)}")
    roles = dict(SPECIAL[special])
    counted = _Counted(texts)
    sentinels: list[str] = []
    if special in ("span_corruption", "any"):
        count = SENTINELS if size is None else max(1, min(SENTINELS, size // 10))
        sentinels = [f"<extra_id_{index}>" for index in reversed(range(count))]
    if size is None:
        backend = _char(counted, roles, special)
    else:
        backend = _subword(kind, counted, roles, size, len(sentinels), lowercase)
    if not counted.characters:
        raise UserError("There is too little text to train a tokenizer on: give more.")
    if special == "masked":
        surround_sentences(backend, roles["cls"], roles["sep"])
    elif special not in ("causal", "any"):
        surround(backend, None, roles["eos"])
    add(backend, _special_tokens(sentinels))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": token for role, token in roles.items()},
        "clean_up_tokenization_spaces": False,
        **({"do_lower_case": lowercase} if kind == "wordpiece" else {}),  # KerasHub asks for it
        **({"additional_special_tokens": sentinels[::-1]} if sentinels else {}),
        "model_input_names": input_names(segments=special == "masked"),
    }
    return backend, config


def input_names(*, segments: bool) -> list[str]:
    """Inputs that transformers hands to a model: segment ids only if it has segments."""
    return ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]


def parse_spec(spec: str) -> tuple[str, int | None]:
    """Read `char` or `kind:N` into (kind, size); raises UserError for anything else."""
    kind, colon, number = spec.partition(":")
    if kind == "char":
        if colon:
            raise UserError(f"The tokenizer {quote(spec)} can't have a size: write 'char'.")
        return kind, None
    if kind not in _LEAST:
        raise UserError(
            f"There is no kind of tokenizer called {quote(spec)}: {nearest(kind, ['char', *_LEAST])}. "
            "Write char, bpe:8192, wordpiece:N or unigram:N, or give the path of a tokenizer."
        )
    digits = number.lstrip("0")
    if not number.isascii() or not number.isdigit() or not digits:
        raise UserError(f"The tokenizer {quote(spec)} needs the size of its vocabulary, for example {kind}:8192.")
    if len(digits) > len(str(LARGEST)) or int(digits) > LARGEST:
        raise UserError(f"The tokenizer {quote(spec)} has more than {LARGEST:,} tokens, which no vocabulary needs.")
    return kind, int(digits)


class Piece(Protocol):
    """A document or a part of one, such as `anyformer.data.documents.Document`."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def last(self) -> bool:
        """False when the next piece continues this text."""
        ...


class _Counted:
    """Passes texts on, counting the documents, and remembers their distinct characters."""

    def __init__(self, texts: Iterable[str | Piece]) -> None:
        self._texts = texts
        self.documents = 0
        self.characters: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        for item in self._texts:
            text = item if isinstance(item, str) else item.text
            if text:
                self.documents += isinstance(item, str) or item.last
                self.characters.update(text)
                yield text


def _char(texts: _Counted, roles: dict[str, str], special: str) -> tokenizers.Tokenizer:
    for _ in texts:
        pass
    if special == "causal" and texts.documents < 2:
        roles.clear()
    named = list(dict.fromkeys(roles.values()))
    first, last = ([], named) if special == "causal" else (named, [])
    vocabulary = {token: id_ for id_, token in enumerate([*first, *sorted(texts.characters), *last])}
    # BPE without merges is a character tokenizer that needs no splitting beforehand, which makes it fast
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=roles.get("unk")))
    backend.decoder = decoders.Fuse()
    add(backend, _special_tokens(roles.values()))
    return backend


def _subword(
    kind: str, texts: _Counted, roles: dict[str, str], size: int, sentinels: int, lowercase: bool
) -> tokenizers.Tokenizer:
    """A subword tokenizer that has room for so many sentinels."""
    if kind != "bpe":
        roles.setdefault("unk", "[UNK]" if kind == "wordpiece" else "<unk>")
    least = len(roles) + _LEAST[kind]
    if size - sentinels < least:
        least += max(1, min(SENTINELS, (least - 1) // 9)) if sentinels else 0
        raise UserError(f"A {kind} vocabulary of {size} is too small: it needs at least {least} tokens.")
    size -= sentinels
    options: Any = {"vocab_size": size, "show_progress": False, "special_tokens": _special_tokens(roles.values())}
    if kind == "bpe":
        # On bytes (Radford et al. 2019): every text has an encoding, and decoding gives it back exactly.
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = byte_words()
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(min_frequency=2, initial_alphabet=alphabet, **options)
        train_model = partial(backend.train_from_iterator, texts, trainer)
    elif kind == "wordpiece":
        # With BERT's splitting (Devlin et al. 2018). It forgets spacing, so decoding is approximate.
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token=roles["unk"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
        # each letter takes two tokens, at the start of a word and inside it
        letters = min(1000, (size - len(roles)) // 2)
        train_model = partial(_train_wordpiece, backend, texts, letters, options)
    else:
        # Unigram (Kudo 2018) on NFKC text, as SentencePiece has it, but with line ends kept as tokens.
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        words = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", behavior="isolated"), words])
        backend.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
        trainer = trainers.UnigramTrainer(unk_token=roles["unk"], **options)
        train_model = partial(backend.train_from_iterator, texts, trainer)
    try:
        train_model()
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(
            f"A {kind} vocabulary of {size} can't be trained on this text of {len(texts.characters)} "
            f"distinct characters: {error}."
        ) from error
    return backend


def _train_wordpiece(
    backend: tokenizers.Tokenizer, texts: Iterable[str], letters: int, options: dict[str, Any]
) -> None:
    """Train WordPiece with so many letters at most, with the same result each time.

    The library numbers the letters inside words as they come out of a hash table, in each process in another order, and
    of pairs that are equally frequent the numbers decide which is merged. So one pass over the text finds these
    letters, and another, over a copy of it on disk, begins with them in the order of the alphabet.
    """
    scratch = tokenizers.Tokenizer(models.WordPiece())
    scratch.normalizer, scratch.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    special = options["special_tokens"]
    normalize = backend.normalizer.normalize_str  # `scratch` is locked while it is trained
    counts: Counter[str] = Counter()
    with tempfile.TemporaryFile("w+", encoding="ascii") as copy:

        def copied() -> Iterator[str]:
            for text in texts:
                copy.write(json.dumps(text) + "\n")
                counts.update(normalize(text))
                yield text

        letters_alone: dict[str, Any] = {**options, "vocab_size": 0}
        scratch.train_from_iterator(copied(), trainers.WordPieceTrainer(**letters_alone))
        first_pass = scratch.get_vocab()
        present = [letter for letter in counts if letter in first_pass or f"##{letter}" in first_pass]
        alphabet = sorted(sorted(present, key=lambda letter: (-counts[letter], letter))[:letters])
        inside = [f"##{letter}" for letter in alphabet if f"##{letter}" in first_pass]
        first = [*special, *_special_tokens(inside)]
        options = {**options, "special_tokens": first, "initial_alphabet": alphabet, "limit_alphabet": letters}
        copy.seek(0)
        scratch.train_from_iterator(map(json.loads, copy), trainers.WordPieceTrainer(**options))
    ids = scratch.get_vocab()
    tokens = dict.fromkeys([*map(str, special), *alphabet, *inside, *sorted(ids, key=ids.__getitem__)])
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    backend.model = models.WordPiece(vocabulary, unk_token=backend.model.unk_token)
    add(backend, special)


def _special_tokens(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, normalized=False, special=True) for token in dict.fromkeys(tokens)]


_LEAST = {"bpe": 256, "wordpiece": 2, "unigram": 1}
"""Tokens that each kind needs beside the special ones: all bytes; a letter at the start of a word, and inside one."""
