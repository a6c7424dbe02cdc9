"""Patterns mean what they mean to `re`, and none takes long."""

from __future__ import annotations

import json
import re
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.config import Pattern, check_patterns
from anyformer.checkpoint.adapter_directory import load_adapter, save_adapter
from anyformer.errors import UserError

PARTS = [
    *("a", "b", ".", "|", "(", "(?:", ")", "*", "+", "?", "*?", "{1,2}", "{2}", "{,1}", "{1,}", "{", "}", ",", "[ab]"),
    *("[^a]", "[]b]", "[", "]", "^", "$", r"\b", r"\.", r"\w", "\\", r"\1", "(?=", "(?i)", "(?x)", "(?!", " ", "++"),
]
NAME = "model.layers.11.self_attn.q_proj.and_a_long_name_behind_it"


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join), st.lists(st.text("ab.", max_size=6), max_size=8))
def test_a_pattern_matches_what_re_matches(text: str, names: list[str]) -> None:
    try:
        pattern = Pattern(text)
    except UserError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that another version of Python will read otherwise
        for name in names:
            assert pattern.matches(name) == (re.match(rf"(.*\.)?({text})$", name) is not None), (text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("q_proj", "a.q_proj"),
        ("model.layers.0.mlp.up_proj", "base.model.layers.0.mlp.up_proj"),
        (r"^model\.layers\.[0-9]+\.(?:q|k|v)_proj$", "model.layers.12.v_proj"),
        (r".*(layers|blocks)\.(1[0-9]|2[0-3])\..*_proj", "x.layers.17.self_attn.q_proj"),
        (r"(?:.*?(?:language|text).*?(?:attn|mlp).*?(?:q_proj|o_proj))|(?:\bmodel\..{1,}q)", "text.0.mlp.o_proj"),
        ("(ab)+c?", "x.ababc"),
    ],
)
def test_what_adapters_have(text: str, name: str) -> None:
    assert Pattern(text).matches(name)
    assert not Pattern(text).matches(f"{name}.other")


HOSTILE = [".?" * 249 + "x", ".*" * 249 + "x", "(.|.)" * 99 + "x", "((a?)?)?" * 62, "(?:.|a|){1000000000}x", "(.|..)*x"]


@pytest.mark.parametrize("text", HOSTILE)
def test_none_takes_long(text: str) -> None:
    begun = time.process_time()
    assert not Pattern(text).matches(NAME)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(?x)(a+) +", r"(a)\1", "(?=a)a", "a*+", "(?i)a", "(?P<x>a)", "[", "a" * 501]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"regular expression|may take too long|more than a pattern"):
        LoraConfig(rank_pattern={text: 1})


def test_patterns_are_few_or_names() -> None:
    check_patterns(f"model.layers.{number}.q_proj" for number in range(2000))
    for part in (".?", "(", "|", "a{2}"):
        many = (part * 100 + ")" * 100 * (part == "(") + str(number) for number in range(500))
        with pytest.raises(UserError, match="more than 10,000 names"):
            check_patterns(many)


def test_a_strangers_adapter(tmp_path: Path) -> None:
    """Patterns that choose layers when an adapter is made are not looked at when it is loaded."""
    config = af.preset("gpt2-nano", vocab_size=40, d_model=32, decoder_layers=1, attention={"heads": 2})
    model = af.build(config)
    save_adapter(add_adapter(model, LoraConfig(rank=3)), tmp_path)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    begun = time.process_time()
    for field in ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"):
        for text in (HOSTILE[0], "(a*)*" * 20 + "x"):
            value = {text: 3} if field in ("rank_pattern", "alpha_pattern") else text
            path.write_text(json.dumps({**raw, field: value}), encoding="utf-8")
            try:
                load_adapter(af.build(config), tmp_path)
            except UserError as error:
                assert str(path) in str(error)  # noqa: PT017
    assert time.process_time() - begun < 10
