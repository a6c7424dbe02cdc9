from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.config import SpecialTokens
from anyformer.data.examples import CompletionExample
from anyformer.data.examples.encoded import EncodedRow, Truncation, encode_completion, truncate
from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_decoder_prompt
from tests.data.examples.templates import KINDS, tokenizer_of
from tests.data.examples.test_chat import answers, texts


@given(st.lists(st.booleans(), max_size=20), st.one_of(st.none(), st.integers(0, 25)))
def test_what_is_cut_off_is_counted(learned: list[bool], context: int | None):
    row = EncodedRow(list(range(len(learned))), learned, 2)
    kept, cut = truncate(row, context)
    length = len(learned) if context is None else min(context, len(learned))
    assert list(kept.tokens) == list(range(length))
    assert list(kept.loss_mask) == learned[:length]
    assert kept.mismatches == 2
    assert cut.tokens == len(learned) - length
    assert cut.targets == row.targets - kept.targets
    assert cut.lost_end == (cut.targets > 0)
    assert cut.lost_all == (row.targets > 0 and kept.targets == 0)
    if cut.tokens == 0:
        assert (kept, cut) == (row, Truncation())


WHERE = Location(Path("pairs.jsonl"), 3)


def example_of(*segments: tuple[str, bool]) -> CompletionExample:
    return CompletionExample(location=WHERE, segments=segments)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=texts, completion=answers)
@settings(max_examples=150)
def test_a_completion_stands_behind_the_prompt_of_generation_and_ends(kind: str, prompt: str, completion: str):
    tokenizer = tokenizer_of(None, "</s>", kind)
    row = encode_completion(tokenizer, example_of((prompt, False), (completion, True)))
    ids = encode_decoder_prompt(tokenizer, prompt)
    assert list(row.tokens[: len(ids)]) == ids
    assert list(row.loss_mask) == [False] * len(ids) + [True] * (len(row.tokens) - len(ids))
    assert row.tokens[-1] == tokenizer.eos
    assert row.tokens.count(tokenizer.bos or 0) == 1
    whole = tokenizer.encode(prompt + completion)
    assert (list(row.tokens[:-1]) == whole) == (row.mismatches == 0)
    if kind == "byte_bpe":
        assert tokenizer.decode(row.tokens) == prompt + completion
    everything = encode_completion(tokenizer, example_of((prompt, False), (completion, True)), learn_all=True)
    assert list(everything.tokens) == list(row.tokens)
    assert list(everything.loss_mask) == [False] + [True] * (len(row.tokens) - 1)


@given(st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=5))
@settings(max_examples=150)
def test_segments_are_learned_as_they_say(segments: list[tuple[str, bool]]):
    tokenizer = tokenizer_of(None, "</s>")
    row = encode_completion(tokenizer, example_of(*segments))
    assert tokenizer.decode(row.tokens) == "".join(text for text, _ in segments)
    assert (row.tokens[-1], row.loss_mask[-1]) == (tokenizer.eos, True)
    learned = [token for token, flag in zip(row.tokens, row.loss_mask, strict=True) if flag]
    assert tokenizer.decode(learned) == "".join(text for text, flag in segments if flag)


def test_an_end_that_is_there_is_not_written_twice():
    tokenizer = tokenizer_of(None, "</s>")
    row = encode_completion(tokenizer, example_of(("a", False), ("b</s>", True)))
    assert list(row.tokens) == tokenizer.encode("ab</s>")


def test_an_empty_prompt_begins_as_in_generation():
    tokenizer = tokenizer_of(None, "</s>")
    row = encode_completion(tokenizer, example_of(("Speak", True)))
    assert list(row.tokens) == [*tokenizer.encode("Speak"), 2]
    bare = Tokenizer(tokenizer.backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    cast("Any", bare.backend).post_processor = None
    row = encode_completion(bare, example_of(("Speak", True)), special_tokens=SpecialTokens(bos=5))
    assert list(row.tokens) == [5, *tokenizer.encode("Speak", special=False), 2]
    with pytest.raises(UserError, match=r"^pairs.jsonl, line 3: the prompt is empty, and the model has no beginning"):
        encode_completion(bare, example_of(("", False), ("a", True)))
    bare.eos = None
    with pytest.raises(UserError, match=r"^pairs.jsonl, line 3: the tokenizer has no end-of-text token"):
        encode_completion(bare, example_of(("a", False), ("a", True)))
