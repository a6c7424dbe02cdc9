from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import anyformer as af
from anyformer import errors
from anyformer.checkpoint.adapter_formats import MLX_WEIGHTS, PEFT_WEIGHTS, read_mlx, read_peft
from anyformer.checkpoint.generation_settings import read as read_generation_settings
from anyformer.checkpoint.pooling import read as read_pooling
from anyformer.cli.main import COMMANDS
from anyformer.compare.result import Comparison
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.families import from_huggingface
from anyformer.finetuning.config import FinetuneConfig
from anyformer.generation.config import GenerationConfig
from anyformer.schema import ConfigError, make
from anyformer.tasks.loading import load_examples
from anyformer.training.config import TrainConfig
from anyformer.training.config_file import read_fields, read_yaml
from tests.cli.test_options import flags_of

names = st.text("abcdefgh", min_size=3, max_size=8)


def test_a_close_name_is_suggested():
    assert nearest("gtp2", ["gpt2", "llama"]) == "did you mean 'gpt2'?"
    assert nearest("LLaMA", ["gpt2", "llama"]) == "did you mean 'llama'?"


def test_without_a_close_name_all_are_listed():
    assert nearest("zzz", ["gpt2", "bert"]) == "choose from 'bert', 'gpt2'"
    assert nearest("zzz", []) == "there are none to choose from"


def test_of_many_the_nearest_are_listed():
    many = [f"model-{number}" for number in range(55)]
    assert nearest("17", many) == "the nearest of 55 are 'model-17', 'model-7', 'model-1'"


@given(names, st.lists(names, min_size=1, max_size=40))
def test_only_valid_names_are_suggested(name: str, valid: list[str]):
    hint = nearest(name, valid)
    assert any(repr(v) in hint for v in valid)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(), inner, max_size=30),
)


@given(_JSON, st.integers(1, 100))
def test_a_value_is_quoted_in_200_characters(value: Any, times: int):
    for each in (value, [value] * times, {"a": value}, str(value) * times, 10**times, -(10 ** (50 * times))):
        assert 1 <= len(quote(each)) <= 200
        assert len(cut(str(value) * times)) <= 200


def test_a_short_value_is_quoted_as_it_is():
    for value in ("gpt2", "it's", 3, None, 0.5, [1, "a"], {"a": True}, "\x1b[2J", b"x"):
        assert quote(value) == repr(value)
    assert quote(10**5000) == "a number too long to write"


LONG = "y" * 400
_CONFIG = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
_READERS: dict[str, tuple[str, Callable[[Path], Any], Any]] = {
    "model": ("config.json", lambda path: from_huggingface(json.loads(path.read_text())), _CONFIG),
    "own": (
        "config.json",
        lambda path: af.ModelConfig.from_dict(json.loads(path.read_text())),
        {
            "vocab_size": 8,
            "d_model": 8,
            "attention": {"heads": 1},
            "feed_forward": {"width": 8},
            "position": {"kind": "rotary", "scaling": {"kind": "linear", "factor": 2.0}},
            "head": {"kind": "none", "problem_type": None, "label_names": []},
        },
    ),
    "generation": ("generation_config.json", lambda path: read_generation_settings(path.parent, {}), {"top_k": 1}),
    "pooling": ("modules.json", lambda path: read_pooling(path.parent), [{"type": "a.Pooling", "path": ""}]),
    "peft": (
        "adapter_config.json",
        lambda path: read_peft(path.parent),
        {
            "peft_type": "LORA",
            "r": 1,
            "target_modules": ["q"],
            "rank_pattern": {"a": 1},
            "bias": "none",
        },
    ),
    "mlx": (
        "adapter_config.json",
        lambda path: read_mlx(path.parent),
        {
            "fine_tune_type": "lora",
            "lora_parameters": {"scale": 1.0},
        },
    ),
    "train": (
        "config.yaml",
        read_yaml,
        {
            "preset": "gpt2-nano",
            "steps": 1,
            "dtype": "float32",
            "optimizer": "adamw",
            "objective": "causal",
            "average": "ema:0.9",
            "engine": None,
            "name": "x",
            "schedule": "cosine",
            "model": {"d_model": 8},
        },
    ),
    "finetune": (
        "config.yaml",
        lambda path: FinetuneConfig(**read_fields(path, FinetuneConfig)),
        {
            "base": "x",
            "task": "text",
            "columns": ["text=a"],
            "quantize": None,
            "loss": None,
        },
    ),
    "comparison": (
        "compare.json",
        lambda path: make(Comparison, json.loads(path.read_text()), "f: "),
        {
            "title": "x",
            "repeat": "x",
            "setup": {"data": ["x"]},
            "models": [],
            "groups": [],
        },
    ),
    "labels": ("a.jsonl", lambda path: load_examples([str(path)]), {"text": "x", "label": "y"}),
    "messages": (
        "a.jsonl",
        lambda path: load_examples([str(path)]),
        {
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}],
        },
    ),
}
"""A file of each kind: its name, what reads it, and what it holds."""


def _long(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The value with a long text, list, number or name somewhere."""
    inside = isinstance(value, dict | list) and len(value) > 0 and draw(st.booleans())
    if not inside:
        longer = [LONG, [LONG] * 30, {LONG: LONG}, int("9" * 400), f"{LONG}={LONG}", LONG * 100]
        return (
            {**value, LONG: LONG} if isinstance(value, dict) and draw(st.booleans()) else draw(st.sampled_from(longer))
        )
    key = draw(st.sampled_from([*value] if isinstance(value, dict) else range(len(value))))
    changed = _long(value[key], draw)
    return {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("long")
    for name in (PEFT_WEIGHTS, MLX_WEIGHTS):
        save_file(
            {f"base_model.model.{LONG}.{part}.weight": torch.ones(1, 1) for part in ("lora_A", LONG)}, made / name
        )
    return made


@pytest.mark.parametrize("kind", _READERS)
@given(data=st.data())
def test_a_message_quotes_little_of_a_long_value(kind: str, folder: Path, data: st.DataObject):
    name, read, content = _READERS[kind]
    changed = _long(content, data.draw)
    (folder / name).write_text(json.dumps(changed))  # which YAML is, too
    try:
        read(folder / name)
    except UserError as error:
        said = str(error)
    else:
        said = ""
    assert max(map(len, re.findall("y+|9+", said)), default=0) <= 200
    assert len(said) < 3000


def test_names_of_other_libraries_are_answered_with_ours():
    fields = [field.name for kind in (TrainConfig, FinetuneConfig) for field in dataclasses.fields(kind)]
    for theirs, ours in {
        "lr": "learning_rate",
        "num_train_epochs": "epochs",
        "per_device_train_batch_size": "batch_size",
        "max_seq_length": "context",
        "gradient_accumulation_steps": "grad_accumulation",
        "warmup_ratio": "warmup",
        "output_dir": "runs",
        "bf16": "dtype",
        "r": "lora",
    }.items():
        assert nearest(theirs, fields) == f"that is {ours!r} here"
        flags = [f"--{name.replace('_', '-')}" for name in fields]
        assert nearest(f"--{theirs.replace('_', '-')}", flags) == f"that is '--{ours.replace('_', '-')}' here"
    with pytest.raises(
        ConfigError, match=r"n_layer: no such field \(that is 'decoder_layers' or 'encoder_layers' here"
    ):
        af.preset("gpt2", n_layer=2)
    with pytest.raises(ConfigError, match=r"n_head: no such field \(that is 'attention.heads' here"):
        af.preset("gpt2").replace(n_head=2)
    with pytest.raises(ConfigError, match=r"attention.num_attention_heads: no such field \(that is 'heads' here"):
        af.preset("gpt2").replace(attention={"num_attention_heads": 2})
    with pytest.raises(
        TypeError, match=r"plan\(\) got an unexpected keyword argument 'lr' \(that is 'learning_rate' h"
    ):
        af.plan("gpt2", lr=1)


def test_every_name_of_ours_is_one():
    known = {
        field.name for kind in (TrainConfig, FinetuneConfig, GenerationConfig) for field in dataclasses.fields(kind)
    }
    known |= {flag.lstrip("-").replace("-", "_") for command in COMMANDS for flag in flags_of(command)} | {
        "preset",
        "text",
        "prompt",
    }
    config = af.preset("gpt2")
    for names in errors.names_elsewhere():
        for name in names.replace(" / ", " ").split():
            first, _, rest = name.partition(".")
            assert name in known or hasattr(getattr(config, first) if rest else config, rest or first), name
    theirs = [name for names in errors.names_elsewhere().values() for name in names.split()]
    assert len(theirs) == len(set(theirs))
