"""Models of a comparison: costs, differences of their configs, texts, and attention on the same sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyformer.checkpoint import load
from anyformer.compare.result import Comparison, ContenderResult
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.learn.attention_maps import attention
from anyformer.learn.attention_maps.page import stacks
from anyformer.learn.diagram import draw, panels
from anyformer.pages.formatting import byte_size, clock, count, fixed, setting, si, whole
from anyformer.runs.listing import flatten
from anyformer.schema import ConfigError

_MOST_DIAGRAMS = 8
"""Diagrams on a page: a grid of changes may have many models, which differ little."""
_COSTS: dict[str, Callable[[ContenderResult], str]] = {
    "parameters": lambda each: count(each.parameters),
    "outside embeddings": lambda each: count(each.parameters_outside_embeddings),
    "FLOPs a token": lambda each: si(each.flops_per_token),
    "memory": lambda each: byte_size(each.memory_bytes) if each.memory_bytes else "–",
    "≈ tokens/s": lambda each: count(each.tokens_per_second),
    "KV bytes a token": lambda each: f"{each.cache_bytes_per_token:,}" if each.cache_bytes_per_token else "none",
    "FLOPs": lambda each: si(each.flops),
    "tokens": lambda each: count(each.tokens),
    "≈ time": lambda each: clock(each.seconds),
    "steps": lambda each: whole(each.steps),
    "learning rate": lambda each: f"{each.learning_rate:.2g}",
}
"""The columns of the table of costs."""
_NO_COST = ("none", "–", "0", "0:00")
"""The cells of a model that was not trained here, or that keeps no keys and values."""
COST_NOTE = (
    "FLOPs a token are those of training. Memory is that of weights, gradients and the optimizer. Keys and values of a "
    "token that is generated take two bytes a number. Tokens/s and time (≈) are noisy: models are trained one after "
    "the other, and other programs on the machine slow some of them down more than others."
)


def costs(comparison: Comparison) -> dict[str, Any]:
    """The table of costs, without those that none of the models has."""
    cells = {name: [show(each) for each in comparison.contenders] for name, show in _COSTS.items()}
    cells = {name: column for name, column in cells.items() if any(cell not in _NO_COST for cell in column)}
    rows = [
        {"name": each.name, "color": place % 8, "cells": [column[place] for column in cells.values()]}
        for place, each in enumerate(comparison.contenders)
    ]
    return {"columns": list(cells), "rows": rows, "note": COST_NOTE}


def trials(comparison: Comparison) -> list[dict[str, Any]]:
    """The learning rates that were tried."""
    return [
        {
            "name": each.name,
            "tried": ", ".join(f"{trial.learning_rate:.2g}: {fixed(trial.validation_loss)}" for trial in each.trials),
            "chosen": f"{each.learning_rate:.2g}",
        }
        for each in comparison.contenders
        if each.trials
    ]


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """The fields in which configs differ, with the value of each."""
    configs = [flatten(each.config) for each in comparison.contenders]
    names = dict.fromkeys(name for config in configs for name in config)
    rows = {name: [config.get(name) for config in configs] for name in names}
    return [
        {"name": name, "cells": [setting(value) for value in values]}
        for name, values in rows.items()
        if any(value != values[0] for value in values)
    ]


def diagrams(comparison: Comparison) -> list[dict[str, Any]]:
    """A drawing of each model; in color what is not the same in all of them."""
    configs = [(each.name, config) for each in comparison.contenders if (config := config_of(each)) is not None]
    drawn = panels(configs) if configs else []
    return [
        {
            "name": panel.name,
            "svg": Markup(draw([panel], among=drawn, identifier=f"diagram-{number}")),
            "wide": panel.config.is_encoder_decoder,
        }
        for number, panel in enumerate(drawn[:_MOST_DIAGRAMS])
    ]


def samples(comparison: Comparison) -> list[dict[str, Any]]:
    """Texts of each model, and its guesses for blanks."""
    return [
        {
            "name": each.name,
            "color": color % 8,
            "passages": [{"before": text.prompt, "written": text.written, "after": ""} for text in each.samples],
            "blanks": [
                {
                    "before": blank.before,
                    "answer": blank.answer,
                    "after": blank.after,
                    "guesses": [
                        {
                            "text": _visible(guess.text),
                            "share": f"{guess.probability:.0%}",
                            "right": guess.text == blank.answer,
                        }
                        for guess in blank.guesses
                    ],
                }
                for blank in each.blanks
            ],
        }
        for color, each in enumerate(comparison.contenders)
        if each.samples or each.blanks
    ]


def config_of(each: ContenderResult) -> ModelConfig | None:
    """The config of a contender; None where this version of anyformer can't read it."""
    try:
        return ModelConfig.from_dict(each.config)
    except (ConfigError, TypeError, ValueError):
        return None


def _visible(text: str) -> str:
    """A guess in one line; of one that is nothing but space, the space."""
    text = text.replace("\n", "\u23ce").replace("\t", "\u21e5")
    return text if text.strip() else text.replace(" ", "\u2423")


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
