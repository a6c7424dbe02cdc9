"""BPE over bytes written in 256 printable characters, llama.cpp's `gpt2` (Radford et al. 2019)."""

from typing import Any, cast

from anyformer.checkpoint.gguf.vocabulary.entries import Entries
from anyformer.checkpoint.gguf.vocabulary.pretokenizers import name_of
from anyformer.errors import UserError

COMPOSED = ("NFC", "NFKC")


def describe(pipeline: Any, entries: Entries, notes: list[str]) -> dict[str, Any]:
    """The metadata. Raises UserError for what llama.cpp's algorithm can't follow."""
    model, normalizer = pipeline["model"], pipeline.get("normalizer")
    if not model["merges"]:
        raise UserError("llama.cpp has no character-level tokenizer: train with --tokenizer bpe:8192, for example.")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError("llama.cpp's BPE knows no marks at the ends of words, which this tokenizer has.")
    if normalizer is not None and normalizer["type"] not in COMPOSED:
        raise UserError(f"llama.cpp does not change text before BPE, as this tokenizer does ({normalizer['type']}).")
    if normalizer is not None:
        notes.append(
            f"llama.cpp does not bring text into the form {normalizer['type']} first, as this tokenizer does: text "
            "that is in another form gets other tokens."
        )
    pre = name_of(
        pipeline.get("pre_tokenizer"), ignores_merges=bool(model.get("ignore_merges")), composes=normalizer is not None
    )
    return {"model": "gpt2", "pre": pre, "merges": merges(model), "add_space_prefix": False, **entries.around()}


def merges(model: Any) -> list[str]:
    """The merges, each as two tokens with a space between them."""
    pairs = cast("list[Any]", model["merges"])
    return [pair if isinstance(pair, str) else " ".join(cast("list[str]", pair)) for pair in pairs]
