"""Files as they lie on the hub: names without a prefix, old buffers, heads that nobody asked for, tied heads twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyformer as af
from anyformer.config import ModelConfig
from anyformer.families import PRESETS, to_huggingface
from anyformer.families.rows import COPY, Operation, rotary_order, split_heads

SMALL = {"vocab_size": 20, "d_model": 16, "attention": {"heads": 2, "kv_heads": None}, "feed_forward": {"width": 24}}
State = dict[str, Tensor]


def _small(name: str) -> ModelConfig:
    layers = {f"{stack}_layers": 2 for stack in ("encoder", "decoder") if getattr(af.preset(name), f"{stack}_layers")}
    padding = 1 if af.preset(name).position.skip_padding else None
    tokens = {"bos": None, "eos": (2,), "pad": 1}
    return af.preset(name, **SMALL, **layers, special_tokens=tokens, embedding={"padding": padding})


def _gpt2(state: State) -> State:
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    return {**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.tensor(-1e4)}


def _bert(state: State) -> State:
    pooler = {"bert.pooler.dense.weight": torch.ones(16, 16), "bert.pooler.dense.bias": torch.ones(16)}
    relation = {"cls.seq_relationship.weight": torch.ones(2, 16), "cls.seq_relationship.bias": torch.ones(2)}
    tied = {
        "cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": state["cls.predictions.bias"].clone(),
    }
    return {**state, **pooler, **relation, **tied, "bert.embeddings.position_ids": torch.arange(5)[None]}


def _llama(state: State) -> State:
    return {**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}


def _bart(state: State) -> State:
    renamed = {name: tensor for name, tensor in state.items() if name != "model.shared.weight"}
    table = state["model.shared.weight"]
    copies = {f"model.{stack}.embed_tokens.weight": table.clone() for stack in ("encoder", "decoder")}
    return {**renamed, **copies, "lm_head.weight": table.clone(), "model.encoder.version": torch.tensor([2.0])}


def _t5(state: State) -> State:
    bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return {**state, bias: torch.ones(32, 2), "lm_head.weight": state["shared.weight"].clone()}


@pytest.mark.parametrize(
    ("name", "change"), [("gpt2", _gpt2), ("bert", _bert), ("llama", _llama), ("bart", _bart), ("t5", _t5)]
)
def test_reads_what_the_hub_has(name: str, change: Callable[[State], State], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = af.build(_small(name))
    assert af.save(model, tmp_path) != "anyformer"
    file = tmp_path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    again, _ = af.load(tmp_path)
    expected, got = model.state_dict(), again.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_head_that_differs_from_the_table_is_a_head_of_its_own(tmp_path: Path) -> None:
    model = af.build(_small("t5"))
    af.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    own = torch.randn(20, 16)
    save_file({**load_file(file), "lm_head.weight": own}, file, metadata={"format": "pt"})
    again, _ = af.load(tmp_path)
    assert not again.config.embedding.tied
    assert again.config.head.scaled
    head: Any = again.head
    assert torch.equal(head.projection.weight, own)


def test_two_names_of_one_weight_must_agree(tmp_path: Path) -> None:
    af.save(af.build(_small("bart")), tmp_path)
    file = tmp_path / "model.safetensors"
    bad = {**load_file(file), "model.encoder.embed_tokens.weight": torch.randn(20, 16)}
    save_file(bad, file, metadata={"format": "pt"})
    with pytest.raises(af.UserError, match=r"model\.encoder\.embed_tokens\.weight should equal"):
        af.load(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "bert", "roberta", "t5", "opus-mt", "bart"])
def test_a_changed_width_is_still_a_model_of_its_family(name: str, tmp_path: Path) -> None:
    """What a user changes by flags must not turn the family's files into our own."""
    config = _small(name)
    assert af.save(af.build(config), tmp_path) == config.model_type


_FIRST = {config.model_type: name for name, config in reversed([*PRESETS.items()])}
"""The first preset of each type."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FIRST.values() else pytest.mark.slow) for name in PRESETS]
)
def test_every_change_of_a_preset_finds_a_format(name: str) -> None:
    """Families are asked in turn whether they can hold a config, and must decline what they can't without a fall."""
    base = PRESETS[name].replace(special_tokens={"bos": None, "eos": (), "pad": None, "decoder_start": None})
    neither = {"rotary_fraction": 1.0, "relative_bias": False}
    changes: list[dict[str, Any]] = [
        {},
        {"norm": {"placement": "post", "first": True}},
        {"norm.placement": "pre"},
        {"norm.kind": "rms"},
        {"position": {"kind": "none", "skip_padding": False, "scaling": None, **neither}},
        {"position": {"kind": "rotary", "skip_padding": False, "scaling": None, **neither}},
        {"position": {"kind": "relative", "skip_padding": False, "scaling": None, **neither}, "other_layers": None},
        {"feed_forward": {"gated": True, "activation": "relu_squared"}},
        {"feed_forward": {"gated": True, "activation": "tanh"}},
        {"attention": {"qk_norm": "head", "window": 3}},
        {"embedding.ngrams": 3},
        {"head": {"kind": "none", "pooler": None}},
        {"head": {"kind": "token_classification", "pooler": None, "labels": 3}},
    ]
    for change in changes:
        if base.attention.latent is not None and "attention" in change:
            continue  # latents have norms of their own
        if base.position.kind == "disentangled" and "attention" in change:
            change = {"attention": {"window": 3}}  # no norms of queries and keys, while positions are compared
        family, written = to_huggingface(base.replace(**change))
        assert written["model_type"] == family.model_type


@st.composite
def _head_splits(draw: st.DrawFn) -> tuple[Operation, list[int], Tensor]:
    """An operation on heads, the rows of each of our tensors, and a tensor on disk."""
    head_dim, groups = 2 * draw(st.integers(1, 5)), draw(st.integers(1, 3))
    counts = draw(st.sampled_from(((1, 1, 1), (3, 1, 1), (4, 2, 2), (2,))))
    rotary_dim = 2 * draw(st.integers(1, head_dim // 2))
    order = draw(st.sampled_from((None, "halves", "neighbors", "swapped")))
    rows = None if order is None else rotary_order(head_dim, rotary_dim, order)
    shape = (groups * sum(counts) * head_dim, *draw(st.sampled_from(((), (3,), (2, 5)))))
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    operation = split_heads(head_dim, *counts, groups=groups, order=rows)
    return operation, [groups * count * head_dim for count in counts], tensor


@given(_head_splits())
def test_heads_are_split_and_joined_bitwise(drawn: tuple[Operation, list[int], Tensor]) -> None:
    operation, rows, stored = drawn
    ours = operation.read(stored, len(rows))
    assert [part.shape for part in ours] == [(count, *stored.shape[1:]) for count in rows]
    assert all(part.is_contiguous() for part in ours)
    assert torch.equal(operation.write(ours), stored)
    again = operation.read(operation.write(ours), len(rows))
    assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))
    assert operation.write([part.to("meta") for part in ours]).shape == stored.shape


def test_heads_lie_where_the_models_have_them() -> None:
    """NeoX: [heads, query key value, head_dim]; Falcon-7B: all queries, one key, one value; Falcon-40B: groups."""
    rows = torch.arange(2 * 3 * 4)
    query, key, value = split_heads(4, 1, 1, 1, groups=2).read(rows, 3)
    assert [part.tolist() for part in (query, key, value)] == [
        [*range(4), *range(12, 16)],
        [*range(4, 8), *range(16, 20)],
        [*range(8, 12), *range(20, 24)],
    ]
    query, key, value = split_heads(2, 3, 1, 1).read(torch.arange(10), 3)
    assert (query.tolist(), key.tolist(), value.tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7], [8, 9])
    query, key, value = split_heads(1, 2, 1, 1, groups=2).read(torch.arange(8), 3)
    assert (query.tolist(), key.tolist(), value.tolist()) == ([0, 1, 4, 5], [2, 6], [3, 7])
    assert split_heads(4, 2, order=rotary_order(4)) is COPY


@pytest.mark.parametrize("wrong", [5, 13, 24])
def test_heads_of_other_sizes_are_an_error_of_torch(wrong: int) -> None:
    """Which loading turns into a sentence."""
    with pytest.raises(RuntimeError):
        split_heads(4, 1, 1, 1, order=rotary_order(4, 2)).read(torch.zeros(wrong, 3), 3)


@given(st.integers(1, 6), st.data(), st.sampled_from(("halves", "neighbors", "swapped")))
def test_turned_pairs_are_the_same(half: int, data: st.DataObject, pairs: Any) -> None:
    """Turning halves of the rows in our order gives what the reference gives, in our order."""
    head_dim, turned = 2 * half, data.draw(st.integers(1, half))
    order = rotary_order(head_dim, 2 * turned, pairs)
    assert sorted(order) == [*range(head_dim)]
    x = torch.randn(head_dim, generator=torch.Generator().manual_seed(half))
    angles = torch.linspace(0.3, 2.0, turned)
    expected = x.clone()
    for i, angle in enumerate(angles):
        a, b = {"halves": (i, i + turned), "neighbors": (2 * i, 2 * i + 1), "swapped": (i + turned, i)}[pairs]
        expected[a] = x[a] * angle.cos() - x[b] * angle.sin()
        expected[b] = x[b] * angle.cos() + x[a] * angle.sin()
    ours, padded = x[order], torch.cat((angles, torch.zeros(half - turned))).repeat(2)
    first, second = ours.chunk(2)
    rotated = ours * padded.cos() + torch.cat((-second, first)) * padded.sin()
    torch.testing.assert_close(rotated, expected[order])
