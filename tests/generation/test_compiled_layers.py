"""Low-rank adapters in compiled code say what they say in torch."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.adapters import LoraConfig, add_adapter, disabled
from anyformer.adapters.modules import adapters, targets
from anyformer.blocks.experts import Experts
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.linear import using_adapters
from anyformer.generation import compiled_decoder
from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.compiled_decoder import CompiledDecoder
from anyformer.model import Transformer
from anyformer.quantization import quantize
from tests.generation.models import COMPILED, VOCAB, WRITERS, build

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a compiler")
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.04, "int8": 0.04, "int4": 0.04}
"""Of the largest difference; of the mean where a number that is rounded otherwise may move all that follows."""
CHOICES = [(), ("a",), ("b",), ("a", "b")]
"""Adapters that act together."""


KINDS = st.sampled_from([*TOLERANCES])
NAMES = st.sampled_from(COMPILED)


def built(name: str, kind: str) -> Transformer:
    """A model in a dtype, or wide enough for integers."""
    made = WRITERS[name]
    if not kind.startswith("int"):
        return build(made).to(getattr(torch, kind))
    return quantize(build(replace(made, d_model=64, feed_forward=replace(made.feed_forward, width=96))), kind)


def adapt(model: Transformer, name: str, config: LoraConfig) -> None:
    """Give a model an adapter that changes its answers."""
    add_adapter(model, config, name)
    for each in adapters(model, name):
        torch.nn.init.normal_(each.b, std=0.3 / config.rank**0.5)
        torch.nn.init.normal_(each.a, std=0.2)
    model.eval()


def linear_layers(model: Transformer) -> list[str]:
    """Last parts of the names of the linear layers that may have an adapter."""
    return sorted({name.rpartition(".")[2] for name, target in targets(model).items() if not target.is_embedding})


def acting(choices: Sequence[Collection[str]]) -> dict[str, Tensor | None]:
    """The rows that each adapter acts on, from the adapters of each row."""
    rows = {name: [row for row, chosen in enumerate(choices) if name in chosen] for name in "ab"}
    return {name: None if len(some) == len(choices) else torch.tensor(some) for name, some in rows.items() if some}


def begun(model: Transformer, texts: int) -> KeyValueCache:
    """A cache of the model, after the source of an encoder-decoder."""
    cache = model.make_cache(texts, 60)
    if model.config.is_encoder_decoder:
        model(torch.full((texts, 1), 2), torch.arange(3, 8).repeat(texts, 1), cache=cache)
    return cache


@contextmanager
def near_ties(model: Transformer, rows: int) -> Iterator[Tensor]:
    """The rows with a token that has two experts with about the same score, of which one is left out.

    The mask is complete once the model has computed. Another rounding may choose the other expert for such a token, and
    its answer is another one then.
    """
    tied = torch.zeros(rows, dtype=torch.bool)

    def note(part: Experts, logits: Tensor) -> None:
        if part.used < part.count:
            scores = logits.float().view(rows, -1, part.count)
            best = scores.topk(part.used + 1).values
            tied.logical_or_((best[..., -2] - best[..., -1] < 0.1 * scores.std(dim=-1)).any(dim=1))

    hooks = [
        part.router.register_forward_hook(lambda _module, _inputs, logits, part=part: note(part, logits))
        for part in model.modules()
        if isinstance(part, Experts)
    ]
    try:
        yield tied
    finally:
        for hook in hooks:
            hook.remove()


def compare(model: Transformer, kind: str, choices: Sequence[Collection[str]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), using_adapters(acting(choices)):
        patch.setattr(compiled_decoder, "_MAX_FLOAT_ROWS", 1000)
        step = DecoderStep(model)
        assert CompiledDecoder(model).adapters.supports(len(choices))
        caches = [begun(model, len(choices)) for _ in range(2)]
        for new, last_only in ((5, True), (1, False), (3, False)):
            tokens = torch.randint(VOCAB, (len(choices), new), generator=generator)
            ours = step(tokens, caches[0], last_only=last_only)
            with near_ties(model, len(choices)) as tied:
                theirs = model(tokens, cache=caches[1], last_only=last_only).logits.float()
            error = ((ours - theirs) / theirs.abs().max()).abs()
            if kind == "float32":
                assert float(error.max()) < TOLERANCES[kind]
            elif not tied.all():
                assert float(error[~tied].mean()) < TOLERANCES[kind]


@pytest.mark.parametrize("kind", TOLERANCES)
@settings(max_examples=30, phases=[Phase.generate])
@given(data=st.data(), name=NAMES, ranks=st.tuples(st.integers(1, 35), st.integers(1, 35)), seed=st.integers(0, 99))
def test_any_adapters_of_any_rows_equal_torchs(
    kind: str, data: st.DataObject, name: str, ranks: tuple[int, int], seed: int
) -> None:
    model = built(name, kind)
    torch.manual_seed(seed)
    ends = linear_layers(model)
    for adapter, rank in zip("ab", ranks, strict=True):
        chosen = data.draw(st.just(ends) | st.lists(st.sampled_from(ends), min_size=1, unique=True))
        adapt(model, adapter, LoraConfig(rank=rank, alpha=data.draw(st.sampled_from([rank, 7])), target_modules=chosen))
    compare(model, kind, data.draw(st.lists(st.sampled_from(CHOICES), min_size=1, max_size=11)), seed)


@settings(max_examples=20, phases=[Phase.generate])
@given(data=st.data(), kind=KINDS, name=st.sampled_from(["rotary", "learned", "sandwich"]), texts=st.integers(2, 9))
def test_a_text_is_the_same_whatever_acts_on_others(data: st.DataObject, kind: str, name: str, texts: int) -> None:
    """Bit for bit."""
    model = built(name, kind)
    torch.manual_seed(texts)
    for adapter, rank in (("a", 5), ("b", 17)):
        adapt(model, adapter, LoraConfig(rank=rank))
    step, own = DecoderStep(model), data.draw(st.sampled_from(CHOICES))
    tokens = torch.randint(VOCAB, (texts, 4))
    found: list[Tensor] = []
    with torch.inference_mode():
        for _ in range(2):
            others = data.draw(st.lists(st.sampled_from(CHOICES), min_size=texts - 1, max_size=texts - 1))
            place = data.draw(st.integers(0, texts - 1))
            with using_adapters(acting([*others[:place], own, *others[place:]])):
                found.append(step(tokens.roll(place, 0), model.make_cache(texts, 9))[place])
    assert torch.equal(*found)


@settings(max_examples=20, phases=[Phase.generate])
@given(kind=KINDS, name=st.sampled_from(["rotary", "sandwich", "n-grams"]), tied=st.booleans())
def test_adapters_of_embeddings_equal_torchs(kind: str, name: str, tied: bool) -> None:
    """They act on the embedding, and not on a head that has its weight."""
    model = built(name, kind)
    if tied:
        model = build(model.config.replace(embedding={"tied": True}))
        kind = "float32"
    every = sorted(end.rpartition(".")[2] for end, target in targets(model).items() if target.is_embedding)
    adapt(model, "a", LoraConfig(rank=3, target_modules=[*every, *linear_layers(model)]))
    assert model.token_embedding.table.adapters is not None
    compare(model, kind, [("a",), ("a",)], 0)


@pytest.mark.parametrize("kind", ["DoRA", "experts", "disabled"])
def test_others_are_left_to_torch(kind: str) -> None:
    model = built("experts" if kind == "experts" else "rotary", "float32")
    adapt(model, "a", LoraConfig(rank=3))
    if kind == "experts":
        config = LoraConfig(rank=3, target_modules=[], target_parameters=["experts.down_proj"])
    else:
        config = LoraConfig(rank=3, use_dora=kind == "DoRA")
    adapt(model, "b", config)
    known = CompiledDecoder(model).adapters
    supported = {}
    for chosen in CHOICES:
        with using_adapters(acting([chosen])):
            supported[chosen] = known.supports(1)
    assert supported == {chosen: kind == "disabled" or "b" not in chosen for chosen in CHOICES}
    with disabled(model):
        assert not known.supports(1)
        with using_adapters({}):
            assert known.supports(1)
