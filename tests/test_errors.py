from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anyformer.errors import nearest

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
