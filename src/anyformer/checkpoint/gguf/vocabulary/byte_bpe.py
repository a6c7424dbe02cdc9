"""BPE over bytes written in 256 printable characters, llama.cpp's `gpt2` (Radford et al. 2019).

llama.cpp has each way of splitting text into words compiled in, and a file only names one (`tokenizer.ggml.pre`):
another way of splitting gives other tokens, so what has no name can't be expressed.
"""

import json
from typing import Any, cast

from anyformer.checkpoint.gguf.vocabulary.entries import Entries
from anyformer.errors import UserError
from anyformer.tokenizer.pretokenizers import PRETOKENIZERS

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
    pre = pretokenizer_name(
        pipeline.get("pre_tokenizer"), ignores_merges=bool(model.get("ignore_merges")), composes=normalizer is not None
    )
    return {"model": "gpt2", "pre": pre, "merges": merges(model), "add_space_prefix": False, **entries.around()}


def merges(model: Any) -> list[str]:
    """The merges, each as two tokens with a space between them."""
    pairs = cast("list[Any]", model["merges"])
    return [pair if isinstance(pair, str) else " ".join(cast("list[str]", pair)) for pair in pairs]


Step = tuple[str, ...]
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by where it is asked to."""
_INEXACT = ("tekken", "falcon", "default")
"""Names under which llama.cpp cuts some texts in another way than the tokenizers that go by them."""


def pretokenizer_name(pre_tokenizer: Any, *, ignores_merges: bool, composes: bool) -> str:
    """The name for a `pre_tokenizer` of tokenizer.json. Raises UserError where there is none.

    Args:
        pre_tokenizer: The JSON.
        ignores_merges: A word that is a token stays whole.
        composes: Text is brought into the form NFC first. llama.cpp never does, but some names promise it.
    """
    steps = _steps(pre_tokenizer)
    for known in PRETOKENIZERS:
        same = steps == _steps(json.loads(cast("Any", known.build()).__getstate__()))
        if same and known.name not in _INEXACT and (known.ignores_merges, known.composes) == (ignores_merges, composes):
            return known.name
    if composes:
        return pretokenizer_name(pre_tokenizer, ignores_merges=ignores_merges, composes=False)
    raise UserError(
        "llama.cpp has no name for the way this tokenizer cuts words (its pre_tokenizer); it knows those of GPT-2, "
        "SmolLM, LLaMA 3 and Qwen2, the last of which `anyformer train` makes."
    )


def _steps(part: Any) -> list[Step]:
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
