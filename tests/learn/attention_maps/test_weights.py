"""Attention of a text: what was read, that rows are shares, that the model is left alone, and one sentence if not.

tests/parity/test_attention.py compares the weights with those of transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import adapters
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.finetuning import toys

TEXT = "the cat sat on the mat and the dog ran"


def _classifier_of_both() -> tuple[Transformer, Tokenizer]:
    """An encoder-decoder both of whose stacks read the text."""
    model, tokenizer = toys.encoder_decoder()
    return af.build(model.config.replace(head={"kind": "classification", "labels": 2, "pooling": "last"})), tokenizer


@pytest.mark.parametrize("kind", toys.MODELS)
@settings(max_examples=8)
@given(data=st.data())
def test_rows_are_shares(kind: str, data: st.DataObject):
    model, tokenizer = toys.MODELS[kind]()
    words = data.draw(st.lists(st.sampled_from(toys.WORDS.split()), min_size=1, max_size=9))
    target = data.draw(st.none() | st.just("the dog")) if kind == "both" else None
    most = data.draw(st.integers(3, 12) if kind == "both" else st.none() | st.integers(3, 12))
    found = af.attention(model, tokenizer, " ".join(words), target, max_tokens=most)
    read = found.tokens if found.source_tokens is None else found.source_tokens
    sizes = {
        "encoder": (len(read), len(read)),
        "decoder": (len(found.tokens),) * 2,
        "cross": (len(found.tokens), len(read)),
    }
    present = {"encoder": ("encoder",), "decoder": ("decoder",), "both": ("encoder", "decoder", "cross")}[kind]
    for name, size in sizes.items():
        weights = getattr(found, name)
        assert (weights is not None) == (name in present)
        if weights is None:
            continue
        layers = model.config.encoder_layers if name == "encoder" else model.config.decoder_layers
        assert weights.shape == (layers, 2, *size)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(layers, 2, size[0]), atol=1e-6, rtol=0)
        if name == "decoder":
            assert weights.triu(1).count_nonzero() == 0
    if most is not None:
        assert len(read) <= most
        assert len(found.tokens) <= most
    assert found.is_cut == (found.text_tokens > len(read) or (found.target_tokens or 0) > len(found.tokens))
    assert found.text_tokens == len(tokenizer.encode(" ".join(words)))
    assert found.generated == (kind == "both" and target is None)


def test_tokens_are_what_was_read():
    model, tokenizer = toys.encoder()
    found = af.attention(model, tokenizer, "the cat sat", max_tokens=4)
    assert found.tokens == ("[CLS]", "the", "cat", "[SEP]")  # what is around the text stays
    assert found.text_tokens == 5
    model, tokenizer = toys.decoder()
    assert "".join(af.attention(model, tokenizer, TEXT).tokens) == TEXT
    assert "".join(af.attention(model, tokenizer, "caf\u00e9").tokens) != "caf\ufffd"
    model, tokenizer = toys.encoder_decoder()
    found = af.attention(model, tokenizer, TEXT, "a good dog")
    start = tokenizer.decode([tokenizer.pad], skip_special=False)
    assert found.tokens[0] == start
    assert "".join(found.tokens[1:]).strip() == "a good dog"  # without the end-of-text, which is only predicted


def test_without_a_target_one_is_generated():
    model, tokenizer = toys.encoder_decoder()
    found = af.attention(model, tokenizer, TEXT, max_tokens=12)
    greedy: list[int] = af.generate_ids(model, torch.tensor([tokenizer.encode(TEXT)]), max_new_tokens=11)[0].tolist()
    greedy = greedy[:-1] if greedy[-1] == tokenizer.eos else greedy
    assert found.generated
    assert len(found.tokens) == 1 + len(greedy)
    given_ = af.attention(model, tokenizer, TEXT, tokenizer.decode(greedy))
    if given_.tokens == found.tokens:
        assert torch.equal(given_.cross, found.cross)


def test_a_classifier_of_two_stacks_reads_its_text_in_both():
    model, tokenizer = _classifier_of_both()
    found = af.attention(model, tokenizer, "the cat sat")
    assert found.source_tokens is not None
    assert len(found.tokens) == len(found.source_tokens)
    assert found.tokens[1:] == found.source_tokens[:-1]
    assert found.cross is not None
    assert not found.generated


def test_an_adapter_counts_merged_or_not():
    model, tokenizer = toys.decoder()
    plain = af.attention(model, tokenizer, TEXT)
    add_adapter(model, LoraConfig(rank=2))
    with torch.no_grad():
        for adapter in adapters(model):
            for parameter in adapter.parameters():
                parameter.normal_(std=0.3)
    beside = af.attention(model, tokenizer, TEXT)
    merged = af.attention(af.merge(model), tokenizer, TEXT)
    torch.testing.assert_close(beside.decoder, merged.decoder, atol=1e-5, rtol=0)
    assert (beside.decoder - plain.decoder).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["bfloat16", "int8"])
def test_rows_of_rounded_weights_are_shares(change: str):
    model, tokenizer = toys.decoder()
    model = model.bfloat16() if change == "bfloat16" else model
    if change == "int8":
        af.quantize(model, "int8")
    found = af.attention(model, tokenizer, TEXT)
    assert found.decoder is not None
    assert found.decoder.dtype == torch.float32
    torch.testing.assert_close(found.decoder.sum(dim=-1), torch.ones(found.decoder.shape[:3]), atol=1e-6, rtol=0)


def test_the_model_is_left_as_it_was():
    model, tokenizer = toys.decoder(dropout=0.1)
    model.train()
    before = af.attention(model, tokenizer, TEXT)
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(before.decoder, af.attention(model, tokenizer, TEXT).decoder)


def _error(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        af.attention(*arguments, **options)
    return str(error.value)


def test_errors_are_sentences():
    encoder, decoder, both = (made() for made in toys.MODELS.values())
    assert "The text is empty" in _error(*encoder, " \n")
    assert "The target is empty" in _error(*both, TEXT, "")
    for model in (encoder, decoder):
        assert "single stack" in _error(*model, TEXT, "a target")
    assert "classifies" in _error(*_classifier_of_both(), TEXT, "a target")
    assert "came without a tokenizer" in _error(decoder[0], None, TEXT)
    assert "the model can read 32" in _error(*encoder, TEXT * 9)
    assert "at least 1" in _error(*decoder, TEXT, max_tokens=0)
    bare = af.build(both[0].config.replace(head=replace(both[0].config.head, kind="none")))
    assert "no language-model head" in _error(bare, both[1], TEXT)
    assert af.attention(bare, both[1], TEXT, "the dog").cross is not None
    with torch.no_grad():
        decoder[0].token_embedding.weight.fill_(torch.nan)
    assert "NaN" in _error(*decoder, TEXT)
