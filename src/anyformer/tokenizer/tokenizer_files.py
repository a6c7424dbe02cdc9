"""The files of a tokenizer's directory: their names, and what is written to them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
COMPANIONS = (CONFIG, SPECIAL_MAP, ADDED, CHAT_TEMPLATE)

_ALONE = (TOKENIZER, "vocab.txt", "spiece.model", "tokenizer.model", "source.spm")
TOKENIZER_FILES = (*_ALONE, *COMPANIONS, "vocab.json", "merges.txt", "target.spm")
"""Every file that a tokenizer is read from or written to."""


def has_tokenizer(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory (or file) holds a tokenizer in any form known here, readable or not."""
    path = Path(directory)
    if path.is_file():
        return path.suffix in {".json", ".txt", ".model"}
    if any((path / name).is_file() for name in _ALONE):
        return True
    return (path / "vocab.json").is_file() and (path / "merges.txt").is_file()


def to_json(value: Mapping[str, Any]) -> bytes:
    """Write JSON as Hugging Face does: indented, UTF-8, a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
