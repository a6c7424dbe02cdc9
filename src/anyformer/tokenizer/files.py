"""The files of a tokenizer's directory: names, contents, and the tokens by role (beginning, end ...) in them."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from anyformer.tokenizer.library import add

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
    model, words, normalizer = backend.model, backend.pre_tokenizer, backend.normalizer
    if isinstance(model, WordPiece):
        kinds = isinstance(words, BertPreTokenizer), isinstance(normalizer, BertNormalizer)
        is_known = all(kinds) and model.continuing_subword_prefix == "##"
    else:
        kinds = isinstance(model, BPE), isinstance(words, ByteLevel), normalizer is None
        is_known = all(kinds) and not words.add_prefix_space and words.use_regex
    if not is_known:  # the rest copies the vocabulary, which may have a quarter of a million tokens
        return {}
    saved: dict[str, Any] = json.loads(backend.to_str())["model"]
    vocabulary: dict[str, int] = saved["vocab"]
    if isinstance(model, WordPiece):
        return {"vocab.txt": "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__)).encode()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["merges"]]
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *merges)).encode(),
    }


ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

GENERIC_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer"})
"""Classes that declare nothing by themselves: a role that the files leave out does not exist."""

CONVENTIONS: tuple[dict[str, str], ...] = (
    {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
)
"""Special tokens that older directories leave to their tokenizer class: the first line with all in the vocabulary."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def as_token(value: object, *, special: bool = True) -> AddedToken | None:
    """Read a token as the files write it: a string, or a dict with its content and flags; None for null."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        flags = {flag: bool(fields[flag]) for flag in _FLAGS if flag in fields}
        return AddedToken(str(fields["content"]), **{"special": special, **flags})
    return None


def declared(config: Mapping[str, Any], special_map: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge `special_tokens_map.json` into the config, where the config has no `added_tokens_decoder`.

    That is the rule of `transformers` 5: the map is the older place, and wins only in older directories.
    """
    return dict(config) if special_map is None or "added_tokens_decoder" in config else {**config, **special_map}


def roles_of(
    config: Mapping[str, Any], id_of: Callable[[str], int | None], padding: Mapping[str, Any] | None = None
) -> dict[str, AddedToken]:
    """Return the token of every role: the declared ones, completed by convention for non-generic classes.

    `id_of` looks a token up in the vocabulary. The padding set up in a `tokenizer.json`, where there is one, names the
    padding token as a last resort.
    """
    usual: Mapping[str, str] = {}
    if config.get("tokenizer_class") not in GENERIC_CLASSES:
        usual = next((roles for roles in CONVENTIONS if None not in map(id_of, roles.values())), {})
    tokens = {role: as_token(config.get(f"{role}_token", usual.get(role))) for role in ROLES}
    if padding is not None and tokens["pad"] is None and "pad_token" not in config:
        tokens["pad"] = AddedToken(str(padding["pad_token"]), special=True, normalized=False)
    return {role: token for role, token in tokens.items() if token is not None}


def add_declared(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    roles: Mapping[str, AddedToken],
    added: Mapping[str, int] | None = None,
) -> None:
    """Give the backend the tokens that only the config names, in the order that `transformers` adds them.

    `added` is the content of a legacy `added_tokens.json`: token -> id.
    """
    present = backend.get_added_tokens_decoder().values()
    decoder = cast("Mapping[str, Any]", config.get("added_tokens_decoder") or {})
    listed = [as_token(decoder[key], special=False) for key in sorted(decoder, key=int)]
    if not decoder and added:
        specials = {token.content for token in roles.values()}
        listed += [as_token(token, special=token in specials) for token in sorted(added, key=added.__getitem__)]
    descriptions = {repr(token) for token in present}
    tokens = [token for token in listed if token is not None and repr(token) not in descriptions]

    contents = {token.content for token in (*present, *tokens)}
    extra: object = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    values = cast("dict[str, Any]", extra).values() if isinstance(extra, dict) else cast("list[Any]", extra)
    for token in (*roles.values(), *(as_token(value) for value in values)):
        if token is not None and token.content not in contents:
            contents.add(token.content)
            tokens.append(token)
    add(backend, tokens)
