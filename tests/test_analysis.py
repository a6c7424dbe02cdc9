"""The account of a model against PyTorch's own counter and the sizes that were published."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer.analysis import cache_bytes_per_token, part_costs
from anyformer.config import ModelConfig
from anyformer.families import ALIASES
from anyformer.model import skeleton

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_514_298,
    "roberta-base": 124_697_433,
    "xlm-roberta-base": 278_295_186,
    "distilbert-base": 66_985_530,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-v1.1-small": 76_961_152,
    "mt5-small": 300_176_768,
    "bart-base": 139_420_416,
    "llama-3.2-1b": 1_235_814_400,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "smollm2-135m": 134_515_008,
    "tinyllama-1.1b": 1_100_048_384,
    "transformer-base": 63_082_496,
    "transformer-big": 214_245_376,
}


@pytest.mark.parametrize(("name", "size"), PUBLISHED.items())
def test_published_sizes(name: str, size: int) -> None:
    assert sum(part.parameters for part in part_costs(af.preset(name), context=8)) == size


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_parts_are_the_whole(name: str) -> None:
    whole = sum(weight.numel() for weight in skeleton(af.preset(name)).parameters())
    assert sum(part.parameters for part in part_costs(af.preset(name), context=8)) == whole


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    name = draw(st.sampled_from(["gpt2", "llama", "bert", "t5", "t5-v1.1-small", "transformer", "bart"]))
    base = af.preset(name)
    layers = {
        f"{stack}_layers": draw(st.integers(1, 3))
        for stack in ("encoder", "decoder")
        if getattr(base, f"{stack}_layers")
    }
    heads = draw(st.sampled_from([1, 2, 4]))
    attention = {"heads": heads, "kv_heads": draw(st.sampled_from([h for h in (1, 2, 4) if heads % h == 0]))}
    return base.replace(
        vocab_size=40,
        d_model=heads * 8,
        attention={**attention, "head_dim": draw(st.sampled_from([None, 6]))},
        feed_forward={"width": draw(st.integers(1, 40))},
        embedding={"ngrams": draw(st.sampled_from([1, 3])), "ngram_rows": 50},
        **layers,
    )


@given(configs(), st.integers(2, 9))
@settings(max_examples=20)
def test_counts_what_pytorch_counts(config: ModelConfig, context: int) -> None:
    model = af.build(config).eval()
    tokens = torch.zeros(1, context, dtype=torch.long)
    # Its counter knows the plain products of attention, not the fused kernel.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, source=tokens if config.is_encoder_decoder else None)
    account = part_costs(config, context)
    # PyTorch counts the whole square of scores, ours one row of it for each token.
    assert sum(part.flops for part in account) * context == counter.get_total_flops()
    assert sum(part.parameters for part in account) == sum(weight.numel() for weight in model.parameters())


@given(configs())
@settings(max_examples=10)
def test_cache_size_is_the_caches_size(config: ModelConfig) -> None:
    if config.decoder_layers == 0:
        assert cache_bytes_per_token(config) == 0
        return
    cache = af.build(config).bfloat16().make_cache(batch=1, capacity=5)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 5 * cache_bytes_per_token(config)
