"""Marian's tokenizer: two SentencePiece models over one vocabulary."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import models
from typing_extensions import override

from anyformer.errors import UserError
from anyformer.tokenizer import sentencepiece, tokenizer_files
from anyformer.tokenizer.core import Tokenizer, clean_up


class MarianTokenizer(Tokenizer):
    """Marian's: one SentencePiece model for the source, one for the target, one vocabulary for both.

    The pieces are the source model's and their ids the vocabulary's, which no tokenizer.json can express, so
    it is kept in Marian's own three files.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], companions: Mapping[str, bytes]) -> None:
        """Read source.spm, target.spm and vocab.json; raises UserError when one is damaged."""
        if config.get("separate_vocabs"):
            raise UserError(f"{directory} has separate source and target vocabularies, which are not supported.")
        kept = {name: tokenizer_files.read_bytes(directory / name) for name in sentencepiece.PAIR}
        source = sentencepiece.read_model(directory / "source.spm")
        self._known = frozenset(source.pieces)
        self._segmenter = sentencepiece.segmenter(source)
        try:
            vocabulary = cast(
                "dict[str, int]", tokenizer_files.parse_object(kept["vocab.json"], directory / "vocab.json")
            )
            words = models.WordLevel(vocab=vocabulary, unk_token="<unk>")
        except (TypeError, OverflowError) as error:
            raise UserError(f"{directory / 'vocab.json'} is not a vocabulary: {error}.") from error
        super().__init__(tokenizers.Tokenizer(words), config, {**companions, **kept})
        if self.unk is None or self.eos is None:
            raise UserError(f"{directory / 'vocab.json'} has no <unk> and </s>, so it is not a Marian vocabulary.")
        self._unknown: int = self.unk
        self._end: int = self.eos
        added = self.backend.get_added_tokens_decoder().values()
        self._splitter = re.compile("(" + "|".join(re.escape(token.content) for token in added) + ")")

    @property
    @override
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(self._files[name] for name in sentencepiece.PAIR)).hexdigest()

    @override
    def encode(self, text: str, special: bool = True, second: str | None = None) -> list[int]:
        """Return the ids of a source text; a leading `>>xx<<` names the target language."""
        ids = self._encode(text) + (self._encode(second) if second is not None else [])
        return [*ids, self._end] if special else ids

    @override
    def encode_parts(self, text: str) -> tuple[list[int], list[int], list[int]]:
        return [], self._encode(text), [self._end]

    @override
    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        return [self.encode(text, special) for text in texts]

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
        return {tokenizer_files.CONFIG: tokenizer_files.to_json(config), **self._files}

    def _join(self, pieces: Sequence[str]) -> str:
        """The text of pieces; the space at its start goes, unless the source model doesn't know that piece."""
        text = "".join(pieces).replace(sentencepiece.SPACE, " ")
        return text.removeprefix(" ") if pieces and pieces[0] in self._known else text

    def _encode(self, text: str) -> list[int]:
        # a piece is looked up by its text also where the source model doesn't know it: the target's vocabulary may
        tokens = [token for part in self._splitter.split(text) for token in self._pieces(part)]
        return [self._unknown if (found := self.id(token)) is None else found for token in tokens]

    def _pieces(self, part: str) -> list[str]:
        if self._splitter.fullmatch(part):
            return [part]
        start = part.find("<<") + 2 if part.startswith(">>") and "<<" in part else 0
        code = [part[:start]] if start else []
        return code + self._segmenter.encode(part[start:], add_special_tokens=False).tokens
