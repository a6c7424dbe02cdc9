"""SentencePiece models (Kudo & Richardson 2018) without that library: those of T5, DeBERTa, M2M-100 and Marian.

A model file is a protocol buffer. Only the few fields that segmentation needs are read here:
pieces = 1 {piece = 1, score = 2, type = 3}, trainer_spec = 2 {model_type = 3}, normalizer_spec = 3 {charsmap = 2}.
"""

import hashlib
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from typing_extensions import override

from anyformer.errors import UserError, cut, quote
from anyformer.limits import MEGABYTE, parse_object, read_bytes
from anyformer.tokenizer.core import Tokenizer, clean_up
from anyformer.tokenizer.files import CONFIG, to_json
from anyformer.tokenizer.library import add, surround, surround_sentences, translated
from anyformer.tokenizer.texts import check_text, texts_of

PAIR = ("source.spm", "target.spm", "vocab.json")

SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_KINDS = {_UNIGRAM: "unigram", _BPE: "BPE"}
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_VARINT, _BYTES = 0, 2
_BYTES_OF_MODEL = 16 * MEGABYTE
"""Three times the largest published; each field of one takes some tens of bytes of memory."""
_LONGEST_PIECE = 512
"""Characters; SentencePiece's own limit is 16 unless it is told another."""
_MOST_SENTINELS = 10_000
"""A hundred times as many as T5 has."""
_FIXED_SIZES = {1: 8, 5: 4}
"""Wire types of a fixed number of bytes."""


@dataclass(frozen=True, slots=True)
class Model:
    """A SentencePiece model: pieces with their log probabilities (or ranks) and types, and the character map."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    charsmap: bytes


def read_model(path: Path, wanted: int = _UNIGRAM) -> Model:
    """Read a SentencePiece model; raises UserError when it is damaged or of another kind."""
    content = read_bytes(path, _BYTES_OF_MODEL)
    try:
        model = _fields(content)
        pieces = [_fields(piece) for piece in model.get(1, [])]
        texts = [piece[1][-1].decode("utf-8") for piece in pieces]
        scores = [struct.unpack("<f", piece.get(2, [bytes(4)])[-1])[0] for piece in pieces]
        types = [index(piece.get(3, [1])[-1]) for piece in pieces]
        trainer, normalizer = (_fields(model.get(field, [b""])[-1]) for field in (2, 3))
        kind = index(trainer.get(3, [_UNIGRAM])[-1])
        charsmap = bytes(memoryview(normalizer.get(2, [b""])[-1]))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path} is not a whole SentencePiece model.") from error
    if kind != wanted:
        raise UserError(f"{path} is not a {_KINDS[wanted]} SentencePiece model, the only kind that its tokenizer uses.")
    if _UNKNOWN not in types:
        raise UserError(f"{path} is not a whole SentencePiece model: it has no unknown piece.")
    return Model(texts, scores, types, charsmap)


def unigram(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """T5's tokenizer from `spiece.model` (Raffel et al. 2020): its pieces, the sentinels, </s> after a text."""
    path = directory / "spiece.model"
    model = read_model(path)
    if "</s>" not in model.pieces:
        raise UserError(f"{path} has no </s>, so it is not a T5 vocabulary.")
    extra = config.get("extra_ids", 100)
    if not isinstance(extra, int) or not 0 <= extra <= _MOST_SENTINELS:
        raise UserError(f"{directory}: extra_ids should be a number from 0 to {_MOST_SENTINELS:,}, not {quote(extra)}.")
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra))]
    unknown = model.types.index(_UNKNOWN)
    backend = pipeline(unigram_model(model.pieces + sentinels, model.scores + [0.0] * extra, unknown), model.charsmap)
    surround(backend, None, "</s>")
    _add_whole(backend, model, reversed(sentinels))
    return backend


def disentangled(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """DeBERTa's tokenizer from `spm.model` (He et al. 2023): its pieces, [MASK] behind them, [CLS] and [SEP] around."""
    path = directory / "spm.model"
    model = read_model(path)
    if missing := {"[CLS]", "[SEP]"}.difference(model.pieces):
        raise UserError(f"{path} has no {min(missing)}, so it is not a DeBERTa vocabulary.")
    words = pre_tokenizers.Punctuation(behavior="isolated") if config.get("split_by_punct") else None
    unknown = model.types.index(_UNKNOWN)
    backend = pipeline(unigram_model(model.pieces, model.scores, unknown), model.charsmap, words)
    first = [normalizers.Lowercase(), normalizers.Strip()] if config.get("do_lower_case") else [normalizers.Strip()]
    table = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*first, *table, normalizers.Replace(Regex(" {2,}"), " ")])
    surround_sentences(backend, "[CLS]", "[SEP]")
    _add_whole(backend, model, ["[MASK]"])
    return backend


def many_to_many(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """M2M-100's tokenizer (Fan et al. 2020) from `sentencepiece.bpe.model` and `vocab.json`, which has the pieces' ids.

    The languages come behind the vocabulary, in the order in which the directory names them. Of a piece that ends up in
    two ways, the pair of earlier pieces is merged first.
    """
    path = directory / "vocab.json"
    model, vocabulary = read_model(directory / "sentencepiece.bpe.model", _BPE), parse_object(read_bytes(path), path)
    typed = zip(model.pieces, model.scores, model.types, strict=True)
    ranks = {piece: rank for piece, rank, kind in typed if kind == _NORMAL}
    if (longest := max(map(len, ranks), default=0)) > _LONGEST_PIECE:
        raise UserError(f"{directory}: a piece of {longest:,} characters is none of a SentencePiece vocabulary.")
    if missing := {*ranks, "<unk>", "</s>"}.difference(vocabulary):
        raise UserError(f"{path} lacks pieces of sentencepiece.bpe.model ({quote(min(missing))}, for one).")
    pairs = [
        (-rank, vocabulary[piece[:cut]], vocabulary[piece[cut:]], piece[:cut], piece[cut:])
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    merges = [(first, second) for *_, first, second in sorted(pairs)]
    with translated(f"{path} is not a vocabulary"):
        bpe = models.BPE(cast("Any", vocabulary), merges, unk_token="<unk>", fuse_unk=True)
    languages = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    source = f"__{config.get('src_lang') or 'en'}__"
    if source not in languages:
        raise UserError(f"{directory}: the language {quote(source)} is not among the additional_special_tokens.")
    backend = pipeline(bpe, model.charsmap)
    whole = [token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in vocabulary]
    add(backend, [AddedToken(token, normalized=False, special=True) for token in (*whole, *languages)])
    surround(backend, source, "</s>")
    return backend


def _add_whole(backend: tokenizers.Tokenizer, model: Model, more: Iterable[str]) -> None:
    """Add what is never split: the pieces that SentencePiece does not, and special tokens behind them."""
    whole = [
        AddedToken(piece, normalized=False, special=kind == _CONTROL)
        for piece, kind in zip(model.pieces, model.types, strict=True)
        if kind in (_CONTROL, _USER)
    ]
    add(backend, whole + [AddedToken(token, normalized=False, special=True) for token in more])


class MarianTokenizer(Tokenizer):
    """Marian's: one SentencePiece model for the source, one for the target, one vocabulary for both.

    The pieces are the source model's and their ids the vocabulary's, which no tokenizer.json can express, so
    it is kept in Marian's own three files.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], companions: Mapping[str, bytes]) -> None:
        """Read source.spm, target.spm and vocab.json; raises UserError when one is damaged."""
        if config.get("separate_vocabs"):
            raise UserError(f"{directory} has separate source and target vocabularies, which are not supported.")
        own = {name: read_bytes(directory / name) for name in PAIR}
        source = read_model(directory / "source.spm")
        self._source_pieces = frozenset(source.pieces)
        # Control pieces such as </s> are never cut out of a text, so they are renamed to what no text contains.
        names = [f"\0{p}" if t == _CONTROL else p for p, t in zip(source.pieces, source.types, strict=True)]
        # SentencePiece splits words at spaces alone, to which its table of characters turns other white space.
        spaces = pre_tokenizers.Split(Regex(" +"), "removed")
        pieces = unigram_model(names, source.scores, source.types.index(_UNKNOWN))
        self._segmenter = pipeline(pieces, source.charsmap, spaces)
        try:
            vocabulary: Any = parse_object(own["vocab.json"], directory / "vocab.json")
            words = models.WordLevel(vocab=vocabulary, unk_token="<unk>")
        except (TypeError, OverflowError) as error:
            raise UserError(f"{directory / 'vocab.json'} is not a vocabulary: {cut(str(error))}.") from error
        super().__init__(tokenizers.Tokenizer(words), config, {**companions, **own})
        if self.unk is None or self.eos is None:
            raise UserError(f"{directory / 'vocab.json'} has no <unk> and </s>, so it is not a Marian vocabulary.")
        self._unknown: int = self.unk
        self._end: int = self.eos
        added = self.backend.get_added_tokens_decoder().values()
        self._splitter = re.compile("(" + "|".join(re.escape(token.content) for token in added) + ")")

    @property
    @override
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(self._files[name] for name in PAIR)).hexdigest()

    @override
    def encode(self, text: str, special: bool = True, second: str | None = None) -> list[int]:
        """Return the ids of a source text; a leading `>>xx<<` names the target language."""
        ids = self._encode(text) + (self._encode(second) if second is not None else [])
        return [*ids, self._end] if special else ids

    @override
    def encode_parts(self, text: str) -> tuple[list[int], list[int], list[int]]:
        return [], self._encode(text), [self._end]

    @override
    def encode_batch(self, texts: Iterable[str], special: bool = True) -> list[list[int]]:
        return [self.encode(text, special) for text in texts_of(texts)]

    @override
    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        hidden = self.special_ids
        parts: list[str] = []
        pieces: list[str] = []
        for id_ in ids:
            token = self.token(id_)
            if token is None or (id_ in hidden and skip_special):
                continue
            if id_ in hidden:
                parts += [self._join(pieces), token, " "]
                pieces = []
            else:
                pieces.append(token)
        text = "".join([*parts, self._join(pieces)]).strip()
        return clean_up(text) if self.cleans_up else text

    @override
    def serialized(self) -> dict[str, bytes]:
        config = {**self.complete_config(), "tokenizer_class": "MarianTokenizer", **self.config}
        return {CONFIG: to_json(config), **self._files}

    def _join(self, pieces: Sequence[str]) -> str:
        """The text of pieces; each of the source model's loses its space where nothing is before it."""
        text = ""
        for piece in pieces:
            text += piece if text or piece not in self._source_pieces else piece.removeprefix(SPACE)
        return text.replace(SPACE, " ")

    def _encode(self, text: str) -> list[int]:
        check_text(text, "encode", "`encode_batch` takes a list of them")
        # a piece is looked up by its text also where the source model hasn't got it: the target's vocabulary may
        ids = [self.id(token) for part in self._splitter.split(text) for token in self._pieces(part)]
        return [self._unknown if id_ is None else id_ for id_ in ids]

    def _pieces(self, part: str) -> list[str]:
        if self._splitter.fullmatch(part):
            return [part]
        start = part.find("<<") + 2 if part.startswith(">>") and "<<" in part else 0
        code = [part[:start]] if start else []
        with translated("The text can't be encoded with this tokenizer"):
            return code + self._segmenter.encode(part[start:], add_special_tokens=False).tokens


def unigram_model(pieces: list[str], scores: list[float], unknown: int) -> models.Model:
    """The likeliest pieces of a word (Kudo 2018)."""
    return models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown, byte_fallback=False)


def pipeline(model: models.Model, charsmap: bytes, words: PreTokenizer | None = None) -> tokenizers.Tokenizer:
    """The pipeline of a SentencePiece model: its map of characters, words at white space, the pieces of each."""
    backend = tokenizers.Tokenizer(model)
    if charsmap:
        check_charsmap(charsmap)
        backend.normalizer = normalizers.Precompiled(charsmap)
    spaces = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words or pre_tokenizers.WhitespaceSplit(), spaces])
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    return backend


def check_charsmap(charsmap: bytes) -> None:
    """Raise UserError for a table of characters that leads out of itself, on which `tokenizers` would panic.

    Layout: length of a trie, the trie (a double array of 32-bit units, Yata et al. 2007), and the texts that its leaves
    point to. A unit's children are in the 256 units around its own number xor its offset.
    """
    size = int.from_bytes(charsmap[:4], "little")
    is_whole = len(charsmap) >= 4 and size % 4 == 0 and size <= len(charsmap) - 4
    if is_whole:
        units = np.frombuffer(charsmap, "<u4", count=size // 4, offset=4)
        boundaries = np.append((np.frombuffer(charsmap, np.uint8, offset=4 + size) & 0xC0) != 0x80, True)
        nodes = np.flatnonzero(units < 2**31)
        unit = units[nodes].astype(np.int64)
        children = nodes ^ ((unit >> 10) << ((unit & 512) >> 6))
        inside = (children | 255) < len(units)
        leaves = units[children[inside & (unit & 256 > 0)]].astype(np.int64) & (2**31 - 1)
        is_whole = inside.all() and (leaves < len(boundaries)).all() and boundaries[leaves].all()
    if not is_whole:
        raise UserError("The vocabulary's table of characters (precompiled_charsmap) is damaged.")


def _fields(content: bytes) -> dict[int, list[Any]]:
    """The values of a protocol buffer by field number, integers or bytes; those of a fixed width are left as bytes."""
    fields: dict[int, list[Any]] = defaultdict(list)
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        value, position = (_FIXED_SIZES[key & 7], position) if key & 7 in _FIXED_SIZES else _varint(content, position)
        if key & 7 != _VARINT:
            if key & 7 not in (_BYTES, *_FIXED_SIZES) or position + value > len(content):
                raise ValueError("cut off")
            value, position = content[position : position + value], position + value
        fields[key >> 3].append(value)
    return fields


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")
