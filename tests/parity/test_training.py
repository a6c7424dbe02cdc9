"""Training does what it does in Hugging Face: the same losses from the same weights, and one batch learnt by heart."""

from typing import Any

import pytest
import torch

import anyformer as af
from tests.parity import hf
from tests.parity.ours import ours_of
from tests.parity.test_roundtrip import shrunk

STEPS = 50
MODELS = [
    hf.Drawn(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "vocab_size": 80,
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        1,
    ),
    hf.Drawn(
        "llama",
        "LlamaForCausalLM",
        {
            "vocab_size": 80,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        2,
    ),
    hf.Drawn(
        "bert",
        "BertForMaskedLM",
        {
            "vocab_size": 80,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        3,
    ),
]


def _batch(drawn: hf.Drawn, step: int) -> hf.Inputs:
    """Text with something to learn in it: each token is followed by the one three further on, with a little noise."""
    generator = torch.Generator().manual_seed(step)
    first = torch.randint(8, (4, 1), generator=generator)
    noise = (torch.rand((4, 24), generator=generator) < 0.1) * torch.randint(80, (4, 24), generator=generator)
    tokens = (first + 3 * torch.arange(24)[None] + noise) % 80
    if drawn.kind == "decoder":
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
        return hf.Inputs(tokens, targets=targets)
    hidden = torch.rand(tokens.shape, generator=generator) < 0.3
    return hf.Inputs(tokens.masked_fill(hidden, 4), targets=tokens.masked_fill(~hidden, -100))


@pytest.mark.parametrize("drawn", MODELS, ids=lambda drawn: drawn.family)
def test_loss_curve_equals(drawn: hf.Drawn) -> None:
    theirs: Any = drawn.build()
    ours = ours_of(theirs)
    ours.train()
    theirs.train()
    optimisers = [torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1) for model in (ours, theirs)]
    curve: list[tuple[float, float]] = []
    for step in range(STEPS):
        inputs = _batch(drawn, step)
        losses = ours(**inputs.ours).loss, theirs(**inputs.theirs, labels=hf.labels(drawn, inputs)).loss
        for optimiser, loss in zip(optimisers, losses, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        curve.append((losses[0].item(), losses[1].item()))
    for step, (a, b) in enumerate(curve):
        assert a == pytest.approx(b, rel=1e-4), f"step {step}"
    assert curve[-1][0] < 0.8 * curve[0][0], "nothing was learnt, so nothing was proved"


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
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=300)
    loss = torch.tensor(torch.inf)
    for _ in range(300):
        loss = model(tokens, source, targets=targets).loss
        if loss.item() < 0.05:
            break
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    assert loss.item() < 0.05
