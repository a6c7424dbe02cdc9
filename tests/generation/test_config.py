"""One config for all of generation: its keywords are its fields, and misspelt ones are named."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import generation
from anyformer.errors import UserError
from anyformer.generation import GenerationConfig
from anyformer.generation.config import GenerationOptions
from tests.generation.models import WRITERS, build

FUNCTIONS = [
    *(getattr(generation, name) for name in generation.__all__ if inspect.isfunction(getattr(generation, name))),
    generation.BatchingEngine,
    generation.BatchingEngine.submit,
    generation.Conversation,
    generation.Conversation.answer,
]


def test_keywords_are_the_fields() -> None:
    assert list(GenerationOptions.__annotations__) == [field.name for field in dataclasses.fields(GenerationConfig)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_no_function_has_more_than_eight_parameters(function: Any) -> None:
    assert len([name for name in inspect.signature(function).parameters if name != "self"]) <= 8


def test_a_misspelt_option_is_named() -> None:
    model, unknown = build(WRITERS["rotary"]), {"temprature": 1.0}
    for call in (
        lambda: GenerationConfig().replace(**unknown),
        lambda: af.generate_ids(model, torch.tensor([[3]]), **unknown),
        lambda: af.BatchingEngine(model).submit([3], **unknown),
    ):
        with pytest.raises(UserError, match="no generation option 'temprature': did you mean 'temperature'"):
            call()


def test_options_change_a_config_and_a_model_fills_what_is_open() -> None:
    config = GenerationConfig(temperature=0.5, top_k=3)
    assert config.replace() is config
    assert config.replace(top_k=None) == GenerationConfig(temperature=0.5)
    model = build(WRITERS["rotary"], settings={"num_beams": 3, "do_sample": True, "temperature": 0.6, "top_k": 0})
    assert GenerationConfig.for_model(model, max_new_tokens=5) == GenerationConfig(beams=3, max_new_tokens=5)
    assert GenerationConfig.for_chat(model, top_p=0.9) == GenerationConfig(temperature=0.6, top_p=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"stop": ["a", ""]}, "stop string is empty"),
        ({"seed": 2**63}, "64 bits"),
        ({"beams": 2, "samples": 2}, "without beams"),
        ({"beams": 2, "repetition_penalty": 1.1}, "without beams"),
        ({"beams": 2, "temperature": 1.0}, "leave out one of the two"),
    ],
)
def test_what_contradicts_itself_is_refused_when_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationConfig(**options)


def test_what_a_caller_does_not_know_is_refused() -> None:
    model, ids = build(WRITERS["rotary"]), torch.tensor([[3]])
    with pytest.raises(UserError, match="Beam search"):
        generation.stream_ids(model, ids, beams=2)
    with pytest.raises(UserError, match="Stop strings"):
        generation.generate_ids(model, ids, stop="a")
    with pytest.raises(UserError, match="one text"):
        af.BatchingEngine(model).submit([3], samples=2)


@pytest.mark.parametrize("field", ["max_new_tokens", "samples", "beams"])
@pytest.mark.parametrize("count", [10**12, 10**30, -1])
def test_numbers_that_no_memory_could_hold(field: str, count: int):
    with pytest.raises(UserError, match=f"{field} is .*at least 1, not {count}"):
        GenerationConfig(**{field: count})
