"""The attention of each model of a comparison on the same sentence, in its first and its last layer."""

from pathlib import Path
from typing import Any

from anyformer.checkpoint import load
from anyformer.compare.result import Comparison, ContenderResult
from anyformer.errors import UserError
from anyformer.learn.attention_maps import attention
from anyformer.learn.attention_maps.page import stacks

_MOST_TOKENS, _FEWEST_WORDS, _MOST_WORDS = 24, 4, 14
_MOST_MODELS = 8
"""Models on a page: more can't be chosen from at a glance."""
_MOST_BYTES = 400_000
"""Bytes of the maps on a page."""


def maps(comparison: Comparison, folder: Path) -> dict[str, Any] | None:
    """The maps that the page's script draws; None where there is no text, or no model of it is left.

    An encoder-decoder's encoder reads the first half of the sentence, and its decoder the other.

    Args:
        comparison: Names the runs, and has the text.
        folder: That the names of runs are relative to.
    """
    words = _words(comparison)
    if not words:
        return None
    found: list[dict[str, Any]] = []
    for each in comparison.contenders[:_MOST_MODELS]:
        for stack in _stacks(each, folder, words):
            parts = stack["title"].lower() if stack["crosses"] or each.config.get("encoder_layers") else ""
            both = each.config.get("encoder_layers") and each.config.get("decoder_layers")
            found.append({**stack, "title": f"{each.name}: {parts}" if both else each.name})
    fits = sum(len(stack["weights"]) for stack in found) <= _MOST_BYTES
    return {"stacks": found, "text": " ".join(words)} if found and fits else None


def _stacks(each: ContenderResult, folder: Path, words: list[str]) -> list[dict[str, Any]]:
    if not each.runs:
        return []
    middle = (len(words) + 1) // 2
    try:
        model, tokenizer = load(folder / each.runs[0])
        both = model.config.is_encoder_decoder
        text, target = (words[:middle], words[middle:]) if both else (words, None)
        shown = attention(
            model, tokenizer, " ".join(text), None if target is None else " ".join(target), max_tokens=_MOST_TOKENS
        )
    except UserError:  # the run was removed, or its model says nothing
        return []
    return stacks(shown, ends=True)


def _words(comparison: Comparison) -> list[str]:
    """The first words of the held-out text that has the most words of letters: code and numbers are hard to read."""
    texts = [sample.prompt for each in comparison.contenders for sample in each.samples]
    texts += [f"{it.before}{it.answer}{it.after}" for each in comparison.contenders for it in each.blanks]
    found = [words[:_MOST_WORDS] for text in texts if len(words := text.split()) >= _FEWEST_WORDS]
    return max(found, key=lambda words: sum(word.strip(".,;:!?").isalpha() for word in words), default=[])
