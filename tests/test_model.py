"""A model is an ordinary nn.Module, and what it is asked for wrongly it refuses."""

import copy
import inspect
import subprocess
import sys

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import anyformer as af
from anyformer.blocks.linear import LowRankAdapter
from anyformer.config import ModelConfig
from anyformer.kernels import Layout, layout
from anyformer.model import Transformer
from tests import examples
from tests.parity.model_spec import ragged

SMALL = {"d_model": 16, "vocab_size": 20, "attention": {"heads": 2, "head_dim": 8}, "feed_forward": {"width": 24}}


def small(name: str, **changes: object) -> ModelConfig:
    layers = {f"{stack}_layers": 2 for stack in ("encoder", "decoder") if getattr(af.preset(name), f"{stack}_layers")}
    grouped = {"attention.kv_heads": None} if af.preset(name).attention.kv_heads else {}
    tokens = {"bos": 1, "eos": (2,), "pad": 0}
    padding = {} if af.preset(name).embedding.padding is None else {"embedding.padding": 0}
    config = af.preset(name).replace(**{**SMALL, **layers, **grouped, **padding, "special_tokens": tokens, **changes})
    return config


FAMILIES = ["gpt2", "llama", "mistral", "qwen3", "bert", "roberta", "distilbert", "t5", "mt5", "transformer", "bart"]


def _computes_everything(device: torch.device) -> bool:
    return False


def _arguments(config: ModelConfig) -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 20, (2, 7))
    return {"tokens": tokens, "targets": tokens, **({"source": tokens} if config.is_encoder_decoder else {})}


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_module(name: str) -> None:
    """Hooks, copies, state dicts and optimizers do what they do everywhere."""
    torch.manual_seed(0)
    config = small(name)
    model = af.build(config).eval()
    arguments = _arguments(config)
    out = model(**arguments)
    seen: list[torch.Tensor] = []
    stack = model.decoder or model.encoder
    assert stack is not None
    stack.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    twin = af.build(config).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(**arguments).logits, out.logits)
    assert torch.equal(copy.deepcopy(model)(**arguments).logits, out.logits)
    assert seen[0].shape == (2, 7, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    out.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    optimizer.step()
    assert model(**arguments).loss < out.loss


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_leaving_padding_out_changes_nothing(name: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, what is hidden in the tokens, and all gradients; of rows of which one has no padding."""
    torch.manual_seed(0)
    model = af.build(small(name)).double().eval()
    arguments = _arguments(model.config)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    mask = mask.flip(1) if side == "left" else mask
    inputs: dict[str, torch.Tensor] = {
        **arguments,
        "mask": mask,
        "targets": arguments["targets"].masked_fill(~mask, -100),
    }
    if "source" in inputs:
        inputs["source_mask"] = mask.flip(0)

    def learned() -> list[torch.Tensor]:
        out = model(**inputs)
        return [out.loss, out.hidden[mask], *torch.autograd.grad(out.loss, [*model.parameters()])]

    packed = learned()
    monkeypatch.setattr(layout, "skips_tokens", _computes_everything)
    for ours, expected in zip(packed, learned(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-9)


@given(name=st.sampled_from([name for name in FAMILIES if small(name).decoder_layers]), data=st.data())
def test_what_rows_begin_with_is_computed_once(name: str, data: st.DataObject) -> None:
    """Loss, what is hidden where it is needed, and all gradients; of rows that begin alike, in some of their tokens."""
    torch.manual_seed(0)
    model = af.build(small(name)).double().eval()
    rows, time = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    # Of few tokens many rows begin alike.
    tokens = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(0, 1), min_size=time, max_size=time), min_size=rows, max_size=rows))
    )
    targets = torch.randint(20, (rows, time))
    needed = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=rows, max_size=rows))
    )
    inputs = {"tokens": tokens, "targets": targets.masked_fill(~needed, -100), "return_logits": False}
    if model.config.is_encoder_decoder:
        inputs["source"] = torch.randint(20, (rows, 4))

    def learned() -> list[torch.Tensor]:
        out = model(**inputs)
        assert out.loss is not None
        gradients = torch.autograd.grad(out.loss, [*model.parameters()], materialize_grads=True)
        return [out.loss, out.hidden[needed], *gradients]

    packed = learned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "skips_tokens", _computes_everything)
        expected = learned()
    for ours, each in zip(packed, expected, strict=True):
        torch.testing.assert_close(ours, each, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("adapted", [False, True])
def test_rows_share_nothing_where_something_is_dropped(adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has dropout of its own, in what rows begin with as well."""
    model = af.build(small("llama" if adapted else "gpt2"))
    if adapted:
        a, b = nn.Parameter(torch.zeros(2, 16)), nn.Parameter(torch.zeros(16, 2))
        query = model.get_submodule("decoder.blocks.0.attention.query")
        query.adapters = nn.ModuleDict({"default": LowRankAdapter(a, b, 1.0, dropout=0.5)})
    tokens = torch.zeros(3, 4, dtype=torch.long)
    shared: list[torch.Tensor] = []
    of_prefixes = Layout.of_prefixes

    def recorded(tokens: torch.Tensor, read: torch.Tensor) -> Layout:
        shared.append(tokens)
        return of_prefixes(tokens, read)

    monkeypatch.setattr(Layout, "of_prefixes", recorded)
    model.train()(tokens, targets=tokens, return_logits=False)
    assert not shared
    model.eval()(tokens, targets=tokens, return_logits=False)
    assert shared


def test_losses_ignore_what_they_are_told_to() -> None:
    model = af.build(small("gpt2")).eval()
    tokens = torch.randint(20, (2, 6))
    targets = tokens.clone()
    targets[0] = -100
    out = model(tokens, targets=targets)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[1], tokens[1]))


def test_wrong_shapes_are_caught_by_their_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "IN_GATE", False)  # there a function that had many calls is not checked any more
    model = af.build(small("gpt2"))
    with pytest.raises(jaxtyping.TypeCheckError):
        model(torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gpt2", {"tokens": torch.zeros(1, 70, dtype=torch.long)}, "70 tokens.*positions for 64"),
        ("t5", {"tokens": torch.zeros(1, 3, dtype=torch.long)}, "needs a source"),
        ("bert", {k: torch.zeros(1, 3, dtype=torch.long) for k in ("tokens", "source")}, "only an encoder-decoder"),
    ],
)
def test_refusals(name: str, arguments: dict[str, torch.Tensor], message: str) -> None:
    model = af.build(small(name, max_length=64))
    with pytest.raises(ValueError, match=message):
        model(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": torch.zeros(3, dtype=torch.long)}, r"tokens: \[batch, time\], not \[3\]; write tokens\[None\]"),
        ({"mask": torch.ones(1, 3)}, r"mask of tokens is torch.bool \[1, 3\].* not torch.float32 \[1, 3\]"),
        ({"mask": torch.ones(1, 2, dtype=torch.bool)}, r"not torch.bool \[1, 2\]"),
        ({"source_mask": torch.ones(1, 3, dtype=torch.long)}, r"mask of source is torch.bool .* not torch.int64"),
        ({"targets": torch.zeros(1, 2, dtype=torch.long)}, r"targets: one for each token, not \[1, 2\] for tokens"),
    ],
)
def test_shapes_that_do_not_fit(arguments: dict[str, torch.Tensor], message: str) -> None:
    model, ids = af.build(small("t5")), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(af.UserError, match=message):
        inspect.unwrap(Transformer.forward)(model, **{"tokens": ids, "source": ids, **arguments})


def test_a_full_cache_says_so() -> None:
    model = af.build(small("llama")).eval()
    cache = model.make_cache(batch=1, capacity=4)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    model(tokens, cache=cache)
    with pytest.raises(ValueError, match="holds 4 tokens, and 6 are needed"):
        model(tokens, cache=cache)
    with pytest.raises(ValueError, match="only a decoder"):
        af.build(small("bert")).make_cache(1, 4)


def test_hidden_states_are_only_kept_if_asked_for() -> None:
    config = small("t5")
    model = af.build(config).eval()
    arguments = _arguments(config)
    assert model(**arguments).hidden_states is None
    out = model(**arguments, return_hidden=True)
    assert len(out.hidden_states) == len(out.source_hidden_states) == 3
    assert torch.equal(out.hidden_states[-1], out.hidden)


def test_bfloat16_stays_bfloat16() -> None:
    for name in ("gpt2", "llama", "t5", "transformer", "bert"):
        config = small(name)
        model = af.build(config).eval().bfloat16()
        arguments = _arguments(config)
        out = model(**arguments)
        assert out.logits.dtype == torch.bfloat16, name
        assert torch.isfinite(out.loss)


_COMPILE = """
import sys
import torch
import anyformer as af

config = af.ModelConfig.from_dict(eval(sys.argv[1]))
torch.manual_seed(0)
model = af.build(config).eval()
tokens = torch.randint(3, 20, (2, 7))
source = tokens if config.is_encoder_decoder else None
expected = model(tokens, source=source, targets=tokens)
compiled = torch.compile(model)(tokens, source=source, targets=tokens)
torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-5, rtol=1e-5)
torch.testing.assert_close(compiled.loss, expected.loss, atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_compiles(name: str) -> None:
    """In a process of its own: the compiler can't see through the checks of shapes that the tests add."""
    command = [sys.executable, "-c", _COMPILE, repr(small(name).to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_computes_the_pooled_token_alone(name: str) -> None:
    """Logits and gradients are the same, with padding on either side and without."""
    torch.manual_seed(0)
    pooling = "last" if small(name).decoder_layers else "first"
    model = af.build(small(name, head={"kind": "classification", "pooling": pooling, "labels": 3})).eval()
    tokens, targets = torch.randint(3, 20, (3, 6)), torch.tensor([0, 2, 1])
    for mask in (None, ragged([6, 2, 4], "left"), ragged([6, 2, 4], "right")):
        found = [model(tokens, mask=mask, targets=targets, pooled_only=only) for only in (False, True)]
        assert [out.hidden.shape[1] for out in found] == [6, 1]
        torch.testing.assert_close(found[1].logits, found[0].logits)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = [torch.autograd.grad(out.loss, weights, allow_unused=True, materialize_grads=True) for out in found]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FAMILIES if small(name).decoder_layers])
def test_the_last_logits_alone(name: str) -> None:
    torch.manual_seed(0)
    model = af.build(small(name)).eval()
    arguments = {**_arguments(model.config), "targets": None}
    whole, last = (model(**arguments, last_only=only) for only in (False, True))
    torch.testing.assert_close(last.logits, whole.logits[:, -1:])
    assert last.hidden.shape[1] == 1
    everything = model(**arguments, last_only=True, return_hidden=True)
    torch.testing.assert_close(everything.logits, last.logits)
    torch.testing.assert_close(everything.hidden, whole.hidden)
