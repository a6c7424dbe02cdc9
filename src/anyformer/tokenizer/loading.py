"""Loading a Tokenizer from a directory, whichever files it has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from anyformer import limits
from anyformer.errors import UserError
from anyformer.tokenizer import legacy, sentencepiece, special, tokenizer_files
from anyformer.tokenizer.core import Tokenizer
from anyformer.tokenizer.library import Translated

_LEGACY: dict[tuple[str, ...], Callable[[Path, Mapping[str, Any]], tokenizers.Tokenizer]] = {
    ("vocab.json", "merges.txt"): legacy.byte_level,
    ("vocab.txt",): legacy.word_piece,
    ("spiece.model",): sentencepiece.unigram,
}


def load(path: Path) -> Tokenizer:
    """Load from a directory or from one of its files. See `Tokenizer.load`."""
    if not path.exists():
        raise UserError(f"There is no tokenizer at {path}: no such file or directory.")
    directory = path if path.is_dir() else path.parent
    with Translated(f"The tokenizer in {directory} has a field that is missing or misshapen"):
        return _read(path, directory)


def _read(path: Path, directory: Path) -> Tokenizer:
    limits.check_files(directory, tokenizer_files.TOKENIZER_FILES, limits.JSON_BYTES)
    files = [directory / name for name in tokenizer_files.COMPANIONS]
    companions = {file.name: limits.read_bytes(file) for file in files if file.is_file()}
    parsed = {
        name: limits.parse_object(content, directory / name)
        for name, content in companions.items()
        if name.endswith(".json")
    }
    config = parsed.get(tokenizer_files.CONFIG, {})
    chosen = path / tokenizer_files.TOKENIZER if path.is_dir() else path
    if chosen.suffix == ".json" and chosen.is_file() and chosen.name != "vocab.json":
        content = limits.read_bytes(chosen)
        limits.parse_object(content, chosen)
        with Translated(f"{chosen} is not a tokenizer that the tokenizers library can read"):
            backend = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        is_bert = isinstance(backend.normalizer, normalizers.BertNormalizer)
        if is_bert and "do_lower_case" in config and config.get("tokenizer_class") not in special.GENERIC_CLASSES:
            # it and its like win over tokenizer.json, as in BERT's own class
            backend.normalizer = legacy.bert_normalizer(config)
        return Tokenizer(backend, config, {**companions, tokenizer_files.TOKENIZER: content})
    if all((directory / name).is_file() for name in sentencepiece.PAIR):
        return sentencepiece.MarianTokenizer(directory, config, companions)
    declared = special.declared(config, parsed.get(tokenizer_files.SPECIAL_MAP))
    for names, build in _LEGACY.items():
        if all((directory / name).is_file() for name in names):
            return Tokenizer(build(directory, declared), config, companions)
    if (directory / "tokenizer.model").is_file():
        raise UserError(
            f"{directory} has only a SentencePiece tokenizer.model: open it once with transformers' "
            "AutoTokenizer and save_pretrained it, which writes the tokenizer.json that is read here."
        )
    raise UserError(
        f"There is no tokenizer in {path}: none of tokenizer.json, vocab.txt, vocab.json with "
        "merges.txt, spiece.model, or source.spm with target.spm and vocab.json."
    )
