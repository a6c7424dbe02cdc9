"""The loop over tokens: the cache changes nothing, nor does company in the batch; it stops where it should."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.config import HeadConfig, ModelConfig, SpecialTokens
from anyformer.errors import UserError
from anyformer.generation import BatchingEngine, generate_ids, stream_ids
from anyformer.model import Transformer
from tests.generation.models import BOS, BOTH, DECODERS, EOS, PAD, VOCAB, WRITERS, batch, build, config, recompute, rows

NEW = 8
few = settings(max_examples=4, derandomize=True, database=None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", WRITERS)
@few
@given(texts=rows(), seed=st.integers(0, 3), filler=st.integers(0, VOCAB - 1))
def test_ragged_batches_equal_recomputation_alone(
    name: str, side: str, texts: list[list[int]], seed: int, filler: int
) -> None:
    model = build(WRITERS[name], seed)
    ids, mask = batch(texts, side, filler)
    said = generate_ids(model, ids, mask, max_new_tokens=NEW)
    assert said.tolist() == [recompute(model, text, NEW) for text in texts]


@pytest.mark.parametrize("name", ["rotary", "learned both"])
def test_of_equally_likely_tokens_the_lowest_id_is_next(name: str) -> None:
    model = build(WRITERS[name])
    assert model.head is not None
    assert model.head.projection is not None
    weight = model.head.projection.weight
    with torch.no_grad():
        weight[[4, 9, 17]] = weight[9] * 100
        weight[[5, 11]] = -weight[9]
    ids = torch.tensor([[3, 4, 5, 6]])
    (said,) = generate_ids(model, ids, max_new_tokens=NEW, stop_at_eos=False).tolist()
    assert {4, 5} & set(said)
    assert not {9, 11, 17} & set(said)
    engine = BatchingEngine(model, None, slots=1, capacity=20)
    request = engine.submit(ids[0].tolist(), max_new_tokens=NEW, stop_at_eos=False)
    engine.run()
    assert request.tokens == said


@pytest.mark.parametrize("name", DECODERS)
def test_padding_in_the_middle(name: str) -> None:
    model = build(WRITERS[name])
    ids = torch.tensor([[3, 0, 4, 0, 5], [6, 7, 8, 9, 10]])
    mask = torch.tensor([[True, False, True, False, True], [True] * 5])
    said = generate_ids(model, ids, mask, max_new_tokens=4).tolist()
    assert said == [recompute(model, [3, 4, 5], 4), recompute(model, [6, 7, 8, 9, 10], 4)]


@pytest.mark.parametrize("name", ["rotary", "learned both"])
def test_each_text_stops_at_its_end(name: str) -> None:
    model = build(WRITERS[name])
    texts = [[3, 4, 5], [6, 7], [8]]
    free = [recompute(model, text, NEW) for text in texts]
    # Tokens that are said, but not by all texts at the same time.
    places = {token: [text.index(token) if token in text else NEW for text in free] for text in free for token in text}
    ends = tuple(token for token, where in places.items() if len(set(where)) > 1 and min(where) > 0)[:2]
    model.config = model.config.replace(special_tokens=SpecialTokens(eos=ends, pad=PAD, decoder_start=BOS))
    expected = [recompute(model, text, NEW, ends) for text in texts]
    longest = max(map(len, expected))
    assert min(map(len, expected)) < longest
    ids, mask = batch(texts, "right")
    said = generate_ids(model, ids, mask, max_new_tokens=NEW)
    assert said.tolist() == [text + [PAD] * (longest - len(text)) for text in expected]
    assert generate_ids(model, ids, mask, max_new_tokens=NEW, stop_at_eos=False).tolist() == free


def test_without_padding_the_end_fills_up() -> None:
    made = WRITERS["rotary"]
    model = build(made)
    texts = [[3, 4, 5], [6, 7]]
    end = recompute(model, texts[0], 1)[0]
    model.config = made.replace(special_tokens=SpecialTokens(eos=(end,), pad=-1))
    ids, mask = batch(texts, "left")
    said = generate_ids(model, ids, mask, max_new_tokens=5)
    expected = [recompute(model, text, 5, (end,)) for text in texts]
    assert said[0].tolist() == [end] * len(expected[1])
    assert said[1].tolist() == expected[1]


def test_the_result_ends_with_the_last_text() -> None:
    model = build(WRITERS["rotary"])
    end = recompute(model, [3, 4, 5], 1)[0]
    model.config = model.config.replace(special_tokens=SpecialTokens(eos=(end,), pad=PAD))
    assert generate_ids(model, torch.tensor([[3, 4, 5]]), max_new_tokens=30).tolist() == [[end]]


def test_steps_come_one_by_one_and_leave_the_caller_alone() -> None:
    model = build(WRITERS["rotary"]).train()
    model.decoder.blocks[0].eval()
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    steps = stream_ids(model, ids, max_new_tokens=4)
    assert model.training
    first = next(steps)
    assert not model.training
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert not first.is_inference()
    rest = list(steps)
    assert model.training
    assert not model.decoder.blocks[0].training
    said = generate_ids(model, ids, max_new_tokens=4)
    assert torch.equal(torch.stack([first, *rest], dim=1), said)
    assert model.training
    # What was generated can be trained on.
    model(said, targets=said).loss.backward()


def test_a_closed_iterator_restores_the_mode() -> None:
    model = build(WRITERS["learned"]).train()
    steps: Any = stream_ids(model, torch.tensor([[3]]))
    next(steps)
    steps.close()
    assert model.training


def test_dropout_is_off() -> None:
    model = build(config(dropout=0.9)).train()
    ids = torch.tensor([[3, 4]])
    assert torch.equal(generate_ids(model, ids), generate_ids(model, ids))


@pytest.mark.parametrize("name", ["grouped", "relative both"])
def test_seeds(name: str) -> None:
    model = build(WRITERS[name])
    ids = torch.tensor([[3, 4, 5]] * 4)
    kept = {"temperature": 1.5, "top_k": 15, "top_p": 0.95}

    def say(seed: int | None) -> list[list[int]]:
        return generate_ids(model, ids, max_new_tokens=10, seed=seed, **kept).tolist()

    before = torch.random.get_rng_state()
    assert say(5) == say(5)
    assert say(5) != say(6)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    drawn = say(None)
    assert drawn != say(None)
    torch.manual_seed(1)
    assert drawn == say(None)
    assert len({tuple(row) for row in say(5)}) > 1


def test_greedy_by_the_filters() -> None:
    model = build(WRITERS["grouped"])
    ids = torch.tensor([[3, 4, 5]])
    greedy = generate_ids(model, ids)
    assert torch.equal(generate_ids(model, ids, temperature=3.0, top_k=1, seed=1), greedy)
    assert torch.equal(generate_ids(model, ids, temperature=1.0, top_p=1e-6, seed=1), greedy)


def test_bfloat16() -> None:
    model = build(WRITERS["grouped"]).bfloat16()
    assert generate_ids(model, torch.tensor([[3, 4, 5]]), temperature=1.0, seed=0).shape == (1, 20)


@pytest.mark.parametrize("name", ["learned", "rotary", "learned both"])
def test_the_context_is_used_to_its_end(name: str) -> None:
    model = build(WRITERS[name].replace(max_length=10))
    taken = 1 if model.config.is_encoder_decoder else 3
    ids = torch.tensor([[3, 4, 5]])
    assert generate_ids(model, ids, max_new_tokens=10 - taken).shape == (1, 10 - taken)
    with pytest.raises(
        UserError, match=rf"with {11 - taken} new ones .* context of 10: ask for at most {10 - taken} new"
    ):
        generate_ids(model, ids, max_new_tokens=11 - taken)


def test_padding_takes_no_context() -> None:
    model = build(config(max_length=10))
    ids, mask = batch([[3], [4, 5, 6]], "right")
    ids, mask = torch.nn.functional.pad(ids, (9, 9)), torch.nn.functional.pad(mask, (9, 9))
    assert generate_ids(model, ids, mask, max_new_tokens=7)[1].tolist() == recompute(model, [4, 5, 6], 7)


def test_no_limit_without_positions() -> None:
    model = build(WRITERS["relative both"].replace(max_length=4))
    assert generate_ids(model, torch.full((1, 30), 5), max_new_tokens=20).shape == (1, 20)


ENCODER = config(encoder_layers=1, decoder_layers=0)
IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize(
    ("made", "arguments", "message"),
    [
        (WRITERS["learned"], {"ids": torch.zeros(1, 0, dtype=torch.long)}, "empty"),
        (WRITERS["learned"], {"mask": torch.tensor([[True] * 3, [False] * 3])}, "Prompt 2 of 2 is empty"),
        (WRITERS["learned"], {"ids": IDS + VOCAB}, f"vocabulary of {VOCAB}"),
        (WRITERS["learned"], {"ids": -IDS}, "Token id -8"),
        (WRITERS["learned"], {"max_new_tokens": 0}, "at least 1"),
        (WRITERS["learned"], {"ids": torch.full((1, 48), 3)}, "shorten it to fewer than 48"),
        (WRITERS["learned"], {"top_k": 0}, "top_k"),
        (WRITERS["learned both"], {"ids": torch.full((1, 49), 3)}, "source has 49 tokens, and the model can read 48"),
        (WRITERS["learned both"].replace(special_tokens=SpecialTokens()), {}, "which token its decoder starts with"),
        (
            WRITERS["learned both"].replace(special_tokens=SpecialTokens(decoder_start=99)),
            {},
            "first token, 99, is outside",
        ),
        (ENCODER, {}, "`embed` .* `fill`"),
        (config(head=HeadConfig(kind="none")), {}, "no language-model head"),
    ],
)
def test_mistakes(made: ModelConfig, arguments: dict[str, Any], message: str) -> None:
    model = Transformer(made)
    arguments = {"ids": IDS, "mask": None, **arguments}
    for function in (generate_ids, stream_ids):
        with pytest.raises(UserError, match=message) as caught:
            function(model, **arguments)
        assert "\n" not in str(caught.value)


def test_the_beginning_starts_a_decoder_that_knows_no_other_start() -> None:
    made = config(**BOTH, special_tokens=SpecialTokens(bos=BOS, eos=(EOS,)))
    model = build(made)
    started = build(made.replace(special_tokens=SpecialTokens(decoder_start=BOS, eos=(EOS,))))
    assert torch.equal(generate_ids(model, IDS), generate_ids(started, IDS))


def test_damage_that_comes_with_a_later_token() -> None:
    model = build(WRITERS["learned"])
    (table,) = [weight for name, weight in model.named_parameters() if "position" in name]
    torch.nn.init.constant_(table[12], math.nan)
    guesser = build(WRITERS["learned"])
    for more in ({}, {"temperature": 1.0}, {"beams": 3}, {"draft": "prompt"}):
        assert generate_ids(model, IDS[:1], max_new_tokens=3, stop_at_eos=False, **more).shape[1] == 3
        with pytest.raises(UserError, match="NaN"):
            generate_ids(model, IDS[:1], max_new_tokens=20, stop_at_eos=False, **more)
    with pytest.raises(UserError, match="NaN"):
        generate_ids(guesser, IDS[:1], max_new_tokens=20, stop_at_eos=False, draft=model)
    engine = BatchingEngine(model, slots=2, capacity=40)
    short, long = (engine.submit(IDS[0].tolist(), max_new_tokens=new, stop_at_eos=False) for new in (3, 20))
    with pytest.raises(UserError, match="NaN"):
        engine.run()
    engine.run()
    assert (short.finish_reason, long.finish_reason) == ("length", "error")


def test_a_diverged_model() -> None:
    model = build(WRITERS[DECODERS[0]])
    torch.nn.init.constant_(model.token_embedding.table.weight, math.nan)
    with pytest.raises(UserError, match="NaN"):
        generate_ids(model, IDS)
