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


@given(names, st.lists(names, min_size=1))
def test_only_valid_names_are_suggested(name: str, valid: list[str]):
    hint = nearest(name, valid)
    assert any(repr(v) in hint for v in valid)
