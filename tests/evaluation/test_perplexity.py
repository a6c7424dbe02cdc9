"""Perplexity, bits per byte and divergence, against sums by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import anyformer as af
from anyformer.evaluation.perplexity import (
    Text,
    _decode_tokens_per_second,  # pyright: ignore[reportPrivateUsage]
    divergence,
    measure,
    read_text,
)
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

WORDS = "the cat sat on the mat and the dog ran after the cat because it was a dog. " * 20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def directory(text: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([WORDS], "bpe:300")
    model = af.build(
        af.preset(
            "llama-nano",
            vocab_size=tokenizer.vocab_size,
            d_model=64,
            decoder_layers=2,
            attention={"heads": 4, "kv_heads": 2},
            feed_forward={"width": 96},
            max_length=64,
        )
    )
    af.save(model, text.parent / "model", tokenizer=tokenizer)
    return text.parent / "model"


def _loss_by_hand(model: Transformer, text: Text, context: int) -> float:
    ids, total = torch.tensor(text.ids), 0.0
    for begin in range(0, len(ids) - 1, context):
        window = ids[begin : begin + context + 1]
        with torch.no_grad():
            logits = model(window[None, :-1]).logits
        assert logits is not None
        total += float(cross_entropy(logits[0], window[1:], reduction="sum"))
    return total / (len(ids) - 1)


@pytest.mark.parametrize("context", [7, 64])
def test_every_token_is_predicted_once(directory: Path, text: Path, context: int) -> None:
    model, tokenizer = af.load(directory)
    read = read_text(tokenizer, [text], limit=150)
    assert len(read.ids) == 151
    counts: list[int] = []
    quality = measure(model, read, context, batch_size=3, progress=counts.append)
    assert sum(counts) == quality.evaluation.predicted == 150
    wanted = _loss_by_hand(model, read, context)
    assert quality.evaluation.loss == pytest.approx(wanted, rel=1e-5)
    assert quality.perplexity == pytest.approx(math.exp(wanted), rel=1e-4)
    nats_per_byte = wanted * 150 / (read.size * 150 / 150)
    assert quality.bits_per_byte == pytest.approx(nats_per_byte / math.log(2), rel=0.02)


def test_windows_begin_as_the_tokenizer_begins_texts(directory: Path) -> None:
    model, _ = af.load(directory)
    ids = torch.randint(5, 200, (20,)).tolist()
    quality = measure(model, Text(ids, 20, start=3), context=8)
    assert quality.evaluation.predicted == 20
    total = 0.0
    for begin in range(0, 20, 8):
        window = torch.tensor(ids[begin : begin + 8])
        with torch.no_grad():
            logits = model(torch.cat([torch.tensor([3]), window[:-1]])[None]).logits
        assert logits is not None
        total += float(cross_entropy(logits[0], window, reduction="sum"))
    assert quality.evaluation.nats == pytest.approx(total, rel=1e-5)


def test_divergence_is_that_of_the_distributions(directory: Path) -> None:
    model, _ = af.load(directory)
    other, _ = af.load(directory, quantize="int4")
    ids = torch.randint(5, 200, (31,)).tolist()
    found = divergence(other, model, Text(ids, 31, start=None), context=64)
    with torch.inference_mode():
        theirs, ours = (each(torch.tensor([ids[:-1]])).logits.double().log_softmax(-1) for each in (model, other))
    assert found == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(-1).mean()), rel=1e-3)
    assert divergence(model, model, Text(ids, 31, start=None)) == pytest.approx(0.0, abs=1e-6)


def test_only_decoders_are_evaluated(directory: Path) -> None:
    encoder = af.build(af.preset("bert-tiny", vocab_size=50)).eval()
    with pytest.raises(af.UserError, match="doesn't write it"):
        measure(encoder, Text([1, 2, 3], 3, None))
    both = af.build(af.preset("t5-nano", vocab_size=50)).eval()
    with pytest.raises(af.UserError, match="reads a source first"):
        measure(both, Text([1, 2, 3], 3, None))


def test_the_speed_of_decoding_is_finite(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = af.load(directory)
    monkeypatch.setattr("anyformer.evaluation.perplexity.generate_ids", lambda *_, **__: None)
    # A clock by which the short text takes as long as the long one: 0.5 s each.
    ticks = iter(range(1000))
    monkeypatch.setattr("anyformer.evaluation.perplexity.time.perf_counter", lambda: next(ticks) / 2)
    speed = _decode_tokens_per_second(model, Text([*range(5, 60)], 55, start=None), 64)
    assert speed == pytest.approx(48 / 0.5)
