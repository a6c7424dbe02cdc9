"""The files of a tokenizer's directory: their names and contents."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
COMPANIONS = (CONFIG, SPECIAL_MAP, ADDED, CHAT_TEMPLATE)

_ALONE = (TOKENIZER, "vocab.txt", "spiece.model", "spm.model", "tokenizer.model", "source.spm")
_BESIDE_VOCABULARY = ("merges.txt", "sentencepiece.bpe.model")
TOKENIZER_FILES = (*_ALONE, *COMPANIONS, "vocab.json", *_BESIDE_VOCABULARY, "target.spm")
"""Every file that a tokenizer is read from or written to."""


def has_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory (or file) holds a tokenizer in any form known here, readable or not."""
    path = Path(directory)
    if path.is_file():
        return path.suffix in {".json", ".txt", ".model"}
    if any((path / name).is_file() for name in _ALONE):
        return True
    return (path / "vocab.json").is_file() and any((path / name).is_file() for name in _BESIDE_VOCABULARY)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Write JSON as Hugging Face does: indented, UTF-8, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def vocabulary_files(backend: tokenizers.Tokenizer) -> dict[str, bytes]:
    """The files of BERT's and GPT-2's pipelines in such a directory, by name, for readers that ask for them (KerasHub).

    Returns {} for every other pipeline: its vocabulary alone would give other ids.
    """
    pipeline: dict[str, Any] = json.loads(backend.to_str())
    model = pipeline["model"]
    pre_tokenizer: dict[str, Any] = pipeline["pre_tokenizer"] or {}
    normalizer: dict[str, Any] = pipeline["normalizer"] or {}
    kinds = model["type"], pre_tokenizer.get("type"), normalizer.get("type")
    if kinds == ("WordPiece", "BertPreTokenizer", "BertNormalizer") and model["continuing_subword_prefix"] == "##":
        return {"vocab.txt": "".join(f"{token}\n" for token in sorted(model["vocab"], key=model["vocab"].get)).encode()}
    if kinds == ("BPE", "ByteLevel", None):
        if pre_tokenizer["add_prefix_space"] or not pre_tokenizer.get("use_regex", True):
            return {}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return {
            "vocab.json": json.dumps(model["vocab"], ensure_ascii=False).encode(),
            "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *merges)).encode(),
        }
    return {}
