from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer import usual_names
from anyformer.errors import nearest
from anyformer.finetuning.config import FinetuneConfig
from anyformer.generation.config import GenerationConfig
from anyformer.schema import ConfigError
from anyformer.training.config import TrainConfig

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
    config = af.preset("gpt2")
    for names in usual_names._OURS:
        for name in names.replace(" / ", " ").split():
            first, _, rest = name.partition(".")
            assert name in known or hasattr(getattr(config, first) if rest else config, rest or first), name
    theirs = [name for names in usual_names._OURS.values() for name in names.split()]
    assert len(theirs) == len(set(theirs))
