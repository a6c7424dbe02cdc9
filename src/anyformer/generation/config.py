"""Options of generation, and a model's own generation_config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack, cast

from anyformer.errors import UserError, nearest
from anyformer.model import Transformer

EarlyStopping = bool | Literal["never"]

DEFAULT_NEW_TOKENS = 200
"""New tokens at most where `GenerationConfig.max_new_tokens` is None."""

_CHAT_TEMPERATURE = 0.7
_MOST_TOKENS, _MOST_TEXTS = 1 << 24, 1 << 16
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (
        lambda count: count is None or 1 <= count <= _MOST_TOKENS,
        "is at most 16,777,216 and at least 1, not {!s:.40}",
    ),
    "samples": (
        lambda count: 1 <= count <= _MOST_TEXTS,
        "is a number of texts, at most 65,536 and at least 1, not {!s:.40}",
    ),
    "seed": (lambda seed: -(2**63) <= seed < 2**63, "is a whole number of 64 bits, below 2**63, not {!s:.40}"),
    "temperature": (lambda value: 0.0 <= value < math.inf, "is 0 (always the likeliest token) or more, not {}"),
    "top_k": (lambda count: count >= 1, "is a number of tokens, at least 1, not {}: leave it out to keep them all"),
    "top_p": (lambda p: 0 < p <= 1, "is a probability above 0 and up to 1, not {}: leave it out to keep all tokens"),
    "min_p": (lambda p: 0 <= p <= 1, "is a share between 0 and 1, not {}"),
    "repetition_penalty": (lambda value: 0.0 < value < math.inf, "is a positive number, 1 for none, not {}"),
    "presence_penalty": (lambda value: abs(value) < math.inf, "is a finite number, 0 for none, not {}"),
    "frequency_penalty": (lambda value: abs(value) < math.inf, "is a finite number, 0 for none, not {}"),
    "beams": (
        lambda count: 1 <= count <= _MOST_TEXTS,
        "is a number of texts that grow side by side, at most 65,536 and at least 1, not {!s:.40}",
    ),
    "length_penalty": (lambda value: abs(value) < math.inf, "is a finite number, not {}"),
    "early_stopping": (lambda value: value in (True, False, "never"), 'is true, false or "never", not {!r}'),
}
"""Conditions on each field, unless it is None as by default."""
_SEARCH = {"beams": "num_beams", "length_penalty": "length_penalty", "early_stopping": "early_stopping"}
"""Fields that a model's generation settings decide where the caller doesn't, and their names there."""


class GenerationOptions(TypedDict, total=False):
    """The fields of `GenerationConfig` as keyword arguments."""

    max_new_tokens: int | None
    stop_at_eos: bool
    stop: str | Sequence[str]
    samples: int
    seed: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    beams: int
    length_penalty: float
    early_stopping: EarlyStopping


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Options of generation: greedily, by sampling, or by beam search.

    Raises:
        UserError: a value out of range, or two that contradict each other.
    """

    max_new_tokens: int | None = 20
    """New tokens after which a text ends. None: as many as the context has room for, at most 200."""
    stop_at_eos: bool = True
    """A text ends with an end-of-text token."""
    stop: str | Sequence[str] = ()
    """Strings that end a text, and are no part of it. Only functions that return text know them."""
    samples: int = 1
    """Texts for each prompt, which is prefilled once for all of them."""
    seed: int | None = None
    """Seed of the random numbers; None: torch's global generator."""

    temperature: float = 0.0
    """Logits are divided by it: below 1 sharper, above 1 flatter. 0: always the likeliest token (greedy);
    otherwise at least 1e-6."""
    top_k: int | None = None
    """Sample from the k likeliest tokens only; None: from all."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability only (Holtzman et al. 2020); None: all."""
    min_p: float | None = None
    """Sample from tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024); None: all."""
    repetition_penalty: float = 1.0
    """Above 1 lowers the logits of tokens of the prompt and the text (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of a token that is among the new ones."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time it is among the new ones."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these tokens; -inf bans one."""

    beams: int = 1
    """Hypotheses that beam search keeps for each prompt; 1: no search."""
    length_penalty: float = 1.0
    """The score of a hypothesis is its log-probability divided by ``length ** length_penalty``: 0 favors short texts, 1
    compares means per token, more favors long ones."""
    early_stopping: EarlyStopping = False
    """When the search for a prompt is over. True: as soon as `beams` texts have ended; False: when the best that still
    grows would have a worse score than all of them if it ended now; "never": when it could not catch up at any
    length."""

    def __post_init__(self) -> None:
        for name in _CHECKS:
            _check(name, getattr(self, name))
        if self.stop == "" or "" in tuple(self.stop):
            raise UserError("A stop string is empty, and would end every text before it begins: leave it out.")
        if 0.0 < self.temperature < 1e-6:
            raise UserError(
                f"temperature {self.temperature} is too small to divide by: 0 always takes the likeliest token."
            )
        for token, bias in self.logit_bias.items():
            if not bias < math.inf:
                raise UserError(f"logit_bias of token {token} is a number that can be added, not {bias}.")
        if self.beams == 1:
            return
        if self.temperature > 0.0:
            raise UserError(
                f"Beams search for the likeliest text, and a temperature above 0 draws one: leave out one of the two "
                f"(beams {self.beams}, temperature {self.temperature})."
            )
        if self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty or self.logit_bias:
            raise UserError("Penalties and biases are for texts without beams: leave them out, or ask for one beam.")
        if self.samples != 1:
            raise UserError("Samples are for texts without beams: leave them out, or ask for one beam.")

    def replace(self, **options: Unpack[GenerationOptions]) -> GenerationConfig:
        """This config with some fields changed. Raises UserError as the class, and for a field that there is not."""
        fields = [field.name for field in dataclasses.fields(self)]
        if unknown := [name for name in options if name not in fields]:
            raise UserError(f"There is no generation option {unknown[0]!r}: {nearest(unknown[0], fields)}")
        return dataclasses.replace(self, **options) if options else self

    @classmethod
    def for_model(cls, model: Transformer, **options: Unpack[GenerationOptions]) -> GenerationConfig:
        """These options, over the beam search that the model's generation settings ask for.

        Sampling ends the search, unless both are asked for, which is refused. The settings' own sampling is not obeyed.
        """
        settings = {} if options.get("temperature", 0.0) != 0.0 else generation_settings(model)
        own = {name: value for name, theirs in _SEARCH.items() if (value := settings.get(theirs)) is not None}
        options = cast("GenerationOptions", {**own, **options})
        _check("early_stopping", options.get("early_stopping", False))  # of a file, it may have any type
        return cls().replace(**options)

    @classmethod
    def for_chat(cls, model: Transformer, **options: Unpack[GenerationOptions]) -> GenerationConfig:
        """These options, over the sampling that the model's generation_config.json recommends, else temperature 0.7."""
        settings = model.origin.generation
        temperature = settings.get("temperature")
        if temperature is None:
            temperature = 0.0 if settings.get("do_sample") is False else _CHAT_TEMPERATURE
        top_p = settings.get("top_p")
        recommended = GenerationOptions(
            temperature=float(temperature),
            top_k=settings.get("top_k") or None,  # files write 0 for all
            top_p=None if top_p is None else float(top_p),
        )
        return cls().replace(**{**recommended, **options})


def _check(name: str, value: object) -> None:
    valid, message = _CHECKS[name]
    optional = getattr(GenerationConfig, name) is None
    if not (optional and value is None) and not valid(value):
        raise UserError(f"{name} {message.format(value)}.")


def resolve(
    model: Transformer,
    config: GenerationConfig | None,
    options: GenerationOptions,
    *,
    beams: bool = True,
    stop_strings: bool = True,
) -> GenerationConfig:
    """The config of a call: the one given, else the model's, with these fields changed.

    Raises UserError as `GenerationConfig`, and for beams or stop strings where the caller does not support them.
    """
    if config is None and beams:
        config = GenerationConfig.for_model(model, **options)
    else:
        config = (config or GenerationConfig()).replace(**options)
    if config.beams > 1 and not beams:
        raise UserError("Beam search has no text before it is over: ask `generate` or `generate_ids` for it.")
    if config.stop and not stop_strings:
        raise UserError("Stop strings end a text, and these are token ids without a tokenizer: leave them out.")
    return config


def generation_settings(model: Transformer) -> Mapping[str, Any]:
    """The model's generation_config.json, or where it had none the same-named fields of its config.json."""
    return model.origin.generation or model.origin.config
