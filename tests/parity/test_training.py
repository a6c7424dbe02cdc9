"""Training does what it does in Hugging Face: the same losses from the same weights, and one batch learnt by heart."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from tests.parity import hf_models
from tests.parity.conversion import assert_close, ours_of
from tests.parity.float64 import Float64, build_wide
from tests.parity.model_spec import Inputs, ModelSpec, labels, ragged
from tests.parity.presets import shrunk

STEPS = 50
VOCAB = 80
RATES = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "dropout_rate",
    "hidden_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
)
"""What the families call dropout, which no two libraries draw alike."""

IN_GATE = ("gpt2", "llama", "mixtral", "bert", "t5", "bart")
"""One of each kind."""

_ROTARY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_COLUMNS: dict[str, Any] = {
    "d_model": 32,
    "max_position_embeddings": 64,
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 48 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
}
_PAPER = {
    **_COLUMNS,
    "activation_function": "relu",
    "scale_embedding": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
}
_MARIAN = {**_PAPER, "activation_function": "swish"}


def _model(name: str, architecture: str, options: dict[str, Any], seed: int, untie: bool = False) -> Any:
    options = {"vocab_size": VOCAB, **options, **dict.fromkeys(RATES, 0.0)}
    marks = [] if name in IN_GATE else [pytest.mark.slow]
    spec = ModelSpec(hf_models.ARCHITECTURES[architecture], architecture, options, seed, untie)
    return pytest.param(spec, id=name, marks=marks)


MODELS = [
    _model("gpt2", "GPT2LMHeadModel", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}, 1),
    _model("llama", "LlamaForCausalLM", _ROTARY, 2),
    _model("mistral", "MistralForCausalLM", {**_ROTARY, "sliding_window": 7}, 3),
    _model("qwen2", "Qwen2ForCausalLM", _ROTARY, 4),
    _model("qwen3", "Qwen3ForCausalLM", {**_ROTARY, "head_dim": 10}, 5),
    _model("mixtral", "MixtralForCausalLM", {**_ROTARY, "num_local_experts": 4, "router_aux_loss_coef": 0.02}, 16),
    _model("bert", "BertForMaskedLM", _ENCODER, 6),
    _model("roberta", "RobertaForMaskedLM", {**_ENCODER, "pad_token_id": 1, "max_position_embeddings": 64}, 7),
    _model("electra", "ElectraForMaskedLM", {**_ENCODER, "embedding_size": 24}, 21),
    _model("albert", "AlbertForMaskedLM", {**_ENCODER, "embedding_size": 16}, 17),
    _model("mpnet", "MPNetForMaskedLM", {**_ENCODER, "max_position_embeddings": 64}, 18),
    _model("distilbert", "DistilBertForMaskedLM", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, 8),
    _model("t5", "T5ForConditionalGeneration", _T5, 9),
    _model("t5-v1.1", "T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}, 10, untie=True),
    _model("mt5", "MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}, 11),
    _model("transformer", "MarianMTModel", _PAPER, 12),
    _model("marian", "MarianMTModel", _MARIAN, 13),
    _model("bart", "BartForConditionalGeneration", _COLUMNS, 14),
    _model("pegasus", "PegasusForConditionalGeneration", _PAPER, 15),
]
"""Every family, as it comes and at a size at which 50 steps take a second or two."""


def _text(generator: torch.Generator, vocab: int, rows: int, time: int) -> Tensor:
    """Text with something to learn in it: each token is followed by the one three further on, with a little noise."""
    first = torch.randint(8, (rows, 1), generator=generator)
    noise = (torch.rand((rows, time), generator=generator) < 0.1) * torch.randint(
        vocab, (rows, time), generator=generator
    )
    return 4 + (first + 3 * torch.arange(time)[None] + noise) % (vocab - 4)


def _mask(generator: torch.Generator, rows: int, time: int) -> Tensor:
    """The first row is whole, the others end somewhere."""
    sizes = torch.randint(time // 3, time + 1, (rows,), generator=generator).tolist()
    return ragged([time, *sizes[1:]], "right")


def _batch(drawn: ModelSpec, step: int) -> Inputs:
    """A batch as the family's objective makes it; ragged, but for decoders, whose texts are packed."""
    generator = torch.Generator().manual_seed(step)
    vocab = drawn.vocab_size
    tokens = _text(generator, vocab, 4, 24)
    if drawn.kind == "decoder":
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
        return Inputs(tokens, targets=targets)
    # There the angles of transformers are those of the longest text, ours those of each: it has nothing padded here.
    mask = torch.ones_like(tokens, dtype=torch.bool) if drawn.is_dynamic else _mask(generator, 4, 24)
    if drawn.kind == "encoder":
        hidden = (torch.rand(tokens.shape, generator=generator) < 0.3) & mask
        pad = drawn.options.get("pad_token_id", 0)
        read = tokens.masked_fill(hidden, 3).masked_fill(~mask, pad)
        return Inputs(read, mask=mask, targets=tokens.masked_fill(~hidden, -100))
    # Write backwards what was read.
    source = _text(generator, min(vocab, drawn.options["vocab_size"]), 4, 15)
    lengths = _mask(generator, 4, 15)
    written = source.flip(1)
    shifted = torch.cat((torch.zeros_like(written[:, :1]), written[:, :-1]), dim=1)
    return Inputs(
        shifted.masked_fill(~lengths.flip(0), 0),
        source.masked_fill(~lengths, 0),
        mask=lengths.flip(0),
        source_mask=lengths,
        targets=written.masked_fill(~lengths.flip(0), -100),
    )


def _curves(drawn: ModelSpec, rate: float, *, wide: bool = False) -> tuple[list[float], list[float]]:
    """The losses of our model and theirs, trained alike from the same weights; ours without whole logits, as it is
    trained. `wide`: in float64.
    """
    theirs: Any = build_wide(drawn) if wide else drawn.build()
    same: Any = drawn.build()
    for each in (theirs, same):
        if hasattr(each.config, "output_router_logits"):
            each.config.output_router_logits = True  # the loss of a mixture of experts has its balance loss then
    ours = ours_of(same)
    ours = ours.double() if wide else ours
    ours.train()
    theirs.train()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1) for model in (ours, theirs)]
    curves: tuple[list[float], list[float]] = ([], [])
    with Float64() if wide else nullcontext():
        for step in range(STEPS):
            inputs = _batch(drawn, step)
            losses = (
                ours(**inputs.ours, return_logits=False).loss,
                theirs(**inputs.theirs, labels=labels(drawn, inputs)).loss,
            )
            for optimizer, loss, curve in zip(optimizers, losses, curves, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
    return curves


@pytest.mark.parametrize("drawn", MODELS)
def test_loss_curve_equals(drawn: ModelSpec) -> None:
    ours, theirs = _curves(drawn, 5e-3)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < 0.9 * ours[0], "nothing was learnt, so nothing was proved"


LEARNERS = [name for name in hf_models.ARCHITECTURES if name in hf_models.GENERATORS or name.endswith("MaskedLM")]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", LEARNERS)
@settings(max_examples=20)
@given(data=st.data())
def test_loss_curves_equal_over_many_configs(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    drawn = replace(drawn, options={**drawn.options, **dict.fromkeys(RATES, 0.0)})
    ours, theirs = _curves(drawn, 1e-3)
    if ours != pytest.approx(theirs, rel=1e-4):
        # A rounding error may turn a ReLU on or off, or send a token to another expert, and AdamW makes it grow with
        # each step: in float64 there is none.
        ours, theirs = _curves(drawn, 1e-3, wide=True)
    assert ours == pytest.approx(theirs, rel=1e-4)


def _named(name: str) -> ModelSpec:
    return next(parameter.values[0] for parameter in MODELS if parameter.id == name)


@pytest.mark.parametrize("name", ["transformer", "gpt2", "bert"])
@pytest.mark.parametrize("logits", [True, False])
def test_label_smoothing_is_that_of_torch(name: str, logits: bool) -> None:
    drawn = _named(name)
    theirs: Any = drawn.build()
    ours = ours_of(theirs)
    inputs = _batch(drawn, 0)
    loss = ours(**inputs.ours, label_smoothing=0.1, return_logits=logits).loss
    scores = theirs(**inputs.theirs).logits
    expected = F.cross_entropy(scores.flatten(0, 1), inputs.targets.flatten(), ignore_index=-100, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() != pytest.approx(ours(**inputs.ours).loss.item(), rel=2e-5)
    table = ours.token_embedding.table.weight
    got, wanted = torch.autograd.grad(loss, table), torch.autograd.grad(expected, theirs.get_input_embeddings().weight)
    assert_close(got[0], wanted[0], "gradient of the token table")


def test_padding_that_no_token_sees_needs_no_mask() -> None:
    """What batches of pairs rely on: behind a text that is read from left to right, padding changes nothing."""
    drawn = _named("transformer")
    model = ours_of(drawn.build())
    inputs = _batch(drawn, 0)
    losses = [model(**{**inputs.ours, "mask": mask}).loss for mask in (inputs.mask, None)]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    # A bias on keys changes no attention: its gradient is rounding alone, and is held against those of the others.
    floor = max(gradient.abs().max().item() for gradient in gradients[1]) / 100
    for name, a, b in zip(dict(model.named_parameters()), *gradients, strict=True):
        assert_close(a, b, name, floor=floor)


EVERY_KIND = ("gpt2", "llama-3.2-1b", "qwen3-0.6b", "bert-base", "t5-small", "bart-base", "transformer-base")


@pytest.mark.parametrize("name", EVERY_KIND)
def test_one_batch_is_learnt_by_heart(name: str) -> None:
    torch.manual_seed(0)
    config = shrunk(name).replace(
        dropout=0.0, **{"embedding.dropout": 0.0, "attention.dropout": 0.0, "feed_forward.dropout": 0.0}
    )
    model = af.build(config)
    source = torch.randint(3, 60, (4, 10)) if config.is_encoder_decoder else None
    tokens, targets = torch.randint(3, 60, (4, 12)), torch.randint(3, 60, (4, 12))
    # Two texts that begin alike could not be told apart.
    tokens[:, 0] = torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=300)
    loss = torch.tensor(torch.inf)
    for _ in range(300):
        loss = model(tokens, source, targets=targets).loss
        if loss.item() < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.05
