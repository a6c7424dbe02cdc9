"""The search itself: it finds the best text where it can look at all, and company or beams change no one's answer."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.cli.main import main
from anyformer.config import SpecialTokens
from anyformer.errors import UserError
from anyformer.generation import (
    GenerationConfig,
    beam_search_ids,
    generate,
    generate_ids,
    generate_n_best,
)
from anyformer.generation.beam_search import largest
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.generation.models import BOS, BOTH, EOS, PAD, VOCAB, WRITERS, batch, build, config, rows

NEW = 7
few = settings(max_examples=4, derandomize=True, database=None)
SEARCHES = st.sampled_from(
    [
        GenerationConfig(max_new_tokens=NEW, beams=beams, length_penalty=penalty, early_stopping=early)
        for beams, penalty, early in itertools.product((1, 2, 3, 4), (0.0, 1.0, 1.5), (True, False, "never"))
    ]
)


@settings(max_examples=40, derandomize=True, database=None)
@given(st.integers(1, 5), st.integers(1, 10), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_the_largest_of_very_many(rows: int, count: int, blocks: int, seed: int, banned: bool) -> None:
    places = blocks * 128 if seed % 4 else max(blocks * 100, count)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, places, generator=generator)
    if banned:
        scores[torch.rand(rows, places, generator=generator) < 0.9] = -torch.inf
    values, order = largest(scores, count)
    torch.testing.assert_close(values, scores.topk(count, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(scores.gather(1, order), values, rtol=0, atol=0)
    assert all(len(set(row)) == count for row in order.tolist())


def ending(name: str, seed: int = 0, settings: dict[str, Any] | None = None) -> Transformer:
    """A model whose texts end early: three tokens end them."""
    tokens = SpecialTokens(eos=(EOS, 5, 9), pad=PAD, decoder_start=BOS)
    return build(WRITERS[name].replace(special_tokens=tokens), seed, settings)


def log_p(model: Transformer, text: list[int], new: tuple[int, ...]) -> float:
    """The log-probability of a continuation, from one pass without a cache."""
    both = model.config.is_encoder_decoder
    read = [BOS] if both else text
    with torch.no_grad():
        logits = model(torch.tensor([[*read, *new]]), torch.tensor([text]) if both else None).logits
    scores = logits[0, len(read) - 1 : -1].log_softmax(dim=-1)
    return float(scores[range(len(new)), list(new)].sum())


@pytest.mark.parametrize("name", ["rotary", "learned both"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_texts(name: str, penalty: float) -> None:
    model, text = ending(name), [3, 4, 6]
    ends = model.config.special_tokens.eos
    words = [token for token in range(VOCAB) if token not in ends]
    possible = [(end,) for end in ends] + list(itertools.product(words, range(VOCAB)))
    scored = sorted(((log_p(model, text, new) / len(new) ** penalty, new) for new in possible), reverse=True)
    config = GenerationConfig(max_new_tokens=2, beams=VOCAB, length_penalty=penalty, early_stopping="never")
    found = beam_search_ids(model, torch.tensor([text]), None, config, n_best=5)
    assert [tuple(row[: len(new)]) for row, (_, new) in zip(found.ids[0].tolist(), scored, strict=False)] == [
        new for _, new in scored[:5]
    ]
    assert found.scores[0].tolist() == pytest.approx([score for score, _ in scored[:5]], abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", WRITERS)
@few
@given(texts=rows(), seed=st.integers(0, 3), filler=st.integers(0, VOCAB - 1), config=SEARCHES)
def test_ragged_batches_equal_each_text_alone(
    name: str, side: str, texts: list[list[int]], seed: int, filler: int, config: GenerationConfig
) -> None:
    model = ending(name, seed)
    ids, mask = batch(texts, side, filler)
    together = beam_search_ids(model, ids, mask, config, n_best=config.beams)
    for index, text in enumerate(texts):
        alone = beam_search_ids(model, torch.tensor([text]), None, config, n_best=config.beams)
        width = alone.ids.shape[2]
        assert together.ids[index, :, :width].tolist() == alone.ids[0].tolist()
        assert bool((together.ids[index, :, width:] == PAD).all())
        torch.testing.assert_close(together.scores[index], alone.scores[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
@few
@given(texts=rows(), seed=st.integers(0, 3), early=st.sampled_from((True, False, "never")))
def test_one_beam_is_greedy(name: str, texts: list[list[int]], seed: int, early: Any) -> None:
    model = ending(name, seed)
    ids, mask = batch(texts, "right")
    found = beam_search_ids(model, ids, mask, max_new_tokens=NEW, beams=1, early_stopping=early)
    greedy = generate_ids(model, ids, mask, max_new_tokens=NEW, beams=1)
    assert torch.equal(found.ids[:, 0], greedy)
    if name == "dynamic":
        return  # what a token was worth when it was chosen is not what it is worth in the longer text
    for text, said, score in zip(texts, greedy.tolist(), found.scores[:, 0].tolist(), strict=True):
        last = next((place for place, token in enumerate(said) if token in (EOS, 5, 9)), len(said) - 1)
        new = tuple(said[: last + 1])
        assert score == pytest.approx(log_p(model, text, new) / len(new), abs=1e-4)


@pytest.mark.parametrize("name", ["rotary", "relative both"])
def test_processors_hold_within_a_search(name: str) -> None:
    """What the source or the text has is told row by row, also after rows have left."""
    rules = {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1, "min_new_tokens": 2}
    model = ending(name, settings=rules)
    texts = [[3, 4, 6], [7, 8], [10], [11, 12, 13, 14]]
    ids, mask = batch(texts, "left")
    found = beam_search_ids(model, ids, mask, max_new_tokens=NEW, beams=4, n_best=4)
    for text, answers in zip(texts, found.ids.tolist(), strict=True):
        for answer in answers:
            end = next((place for place, token in enumerate(answer) if token in (EOS, 5, 9)), NEW - 1)
            said = answer[: end + 1]
            assert len(said) >= 2
            assert len(set(said)) == len(said)
            assert not set(said) & set(text)


def test_the_source_is_read_once_and_finished_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ending("learned both", seed=2)
    texts = [[3, 4, 6], [7, 8], [10], [11, 12, 13, 14]]
    encoded, decoded = _rows_seen(model.encoder, monkeypatch), _rows_seen(model.decoder, monkeypatch)
    ids, mask = batch(texts, "right")
    beam_search_ids(model, ids, mask, max_new_tokens=20, beams=3, early_stopping=True)
    assert encoded == [4]
    # The first token is scored once a text, the others once a beam.
    assert decoded[:2] == [4, 12]
    assert 0 < decoded[-1] < 12
    assert all(size % 3 == 0 for size in decoded[1:])
    assert len(decoded) < 20


def _rows_seen(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of each pass, as they come."""
    seen: list[int] = []
    forward = module.forward

    def watched(x: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(len(x))
        return forward(x, *rest, **more)

    monkeypatch.setattr(module, "forward", watched)
    return seen


def test_the_caller_gets_the_model_back() -> None:
    model = ending("rotary").train()
    ids = torch.tensor([[3, 4, 6]])
    found = beam_search_ids(model, ids, beams=2)
    assert model.training
    model(found.ids[:, 0], targets=found.ids[:, 0]).loss.backward()


def test_the_context_is_used_to_its_end() -> None:
    model = build(WRITERS["learned"].replace(max_length=10))
    assert generate_ids(model, torch.tensor([[3, 4, 6]]), max_new_tokens=7, beams=3).shape == (1, 7)
    with pytest.raises(UserError, match="context of 10"):
        generate_ids(model, torch.tensor([[3, 4, 6]]), max_new_tokens=8, beams=3)


def test_fewer_words_than_candidates() -> None:
    model = build(config(vocab_size=4, special_tokens=SpecialTokens(eos=(1, 2, 3), pad=PAD)))
    found = beam_search_ids(model, torch.tensor([[0]]), max_new_tokens=3, beams=4, n_best=4)
    assert bool(found.scores.isfinite().all())


def test_settings_and_arguments() -> None:
    model = ending("rotary", settings={"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never"})
    own = GenerationConfig.for_model(model)
    assert own == GenerationConfig(beams=3, length_penalty=0.0, early_stopping="never")
    changes: dict[str, Any] = {"beams": 2, "length_penalty": 1.5, "early_stopping": False}
    assert GenerationConfig.for_model(model, **changes) == GenerationConfig(**changes)
    assert GenerationConfig.for_model(model, temperature=1.0) == GenerationConfig(temperature=1.0)
    assert GenerationConfig.for_model(ending("rotary")) == GenerationConfig()
    ids = torch.tensor([[3, 4, 6]])
    searched = beam_search_ids(model, ids, max_new_tokens=NEW).ids[:, 0]
    assert torch.equal(generate_ids(model, ids, max_new_tokens=NEW), searched)
    # Whoever draws doesn't search, unless both are asked for.
    drawn = [generate_ids(m, ids, max_new_tokens=NEW, temperature=1.0, seed=1) for m in (model, ending("rotary"))]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beams": 0}, "beams"),
        ({"beams": 2, "length_penalty": math.nan}, "length_penalty"),
        ({"beams": 2, "temperature": 0.5}, "leave out one of the two"),
        ({"beams": 2, "max_new_tokens": 0}, "at least 1"),
        ({"beams": 2, "top_k": 0}, "top_k"),
    ],
)
def test_mistakes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        generate_ids(build(WRITERS["rotary"]), torch.tensor([[3]]), **arguments)
    assert "\n" not in str(caught.value)


def test_a_setting_that_is_none() -> None:
    model = build(WRITERS["rotary"], settings={"num_beams": 2, "early_stopping": "sometimes"})
    with pytest.raises(UserError, match="early_stopping is true, false"):
        generate_ids(model, torch.tensor([[3]]))


@pytest.mark.parametrize("n_best", [0, 3])
def test_no_more_texts_than_beams(n_best: int) -> None:
    with pytest.raises(UserError, match="n_best"):
        beam_search_ids(build(WRITERS["rotary"]), torch.tensor([[3]]), beams=2, n_best=n_best)


def test_a_diverged_model() -> None:
    model = build(WRITERS["rotary"])
    torch.nn.init.constant_(model.token_embedding.table.weight, math.nan)
    with pytest.raises(UserError, match="NaN"):
        generate_ids(model, torch.tensor([[3]]), beams=2)


PROMPTS = ["the cat", "a", "the dog and the cat", "a mat", "the cat on the mat"]


def translator(**settings: Any) -> tuple[Transformer, Tokenizer]:
    tokenizer = Tokenizer.train(["the cat and the dog on a mat"], "char", special="seq2seq")
    tokens = SpecialTokens(eos=(tokenizer.eos or 0,), pad=tokenizer.pad, decoder_start=0)
    return build(config(**BOTH, vocab_size=tokenizer.vocab_size, special_tokens=tokens), settings=settings), tokenizer


@pytest.mark.parametrize("beams", [1, 3])
def test_batches_keep_the_order(beams: int) -> None:
    model, tokenizer = translator()
    counts: list[int] = []
    alone = [generate(model, tokenizer, prompt, beams=beams)[0] for prompt in PROMPTS]
    assert len(set(alone)) > 1
    assert generate(model, tokenizer, PROMPTS, beams=beams) == alone
    assert generate(model, tokenizer, PROMPTS, beams=beams, batch_size=2, progress=counts.append) == alone
    assert counts == [2, 2, 1]
    with pytest.raises(UserError, match="batch_size"):
        generate(model, tokenizer, PROMPTS, batch_size=0)
    assert generate(model, tokenizer, [], batch_size=2) == []


def test_the_best_texts() -> None:
    model, tokenizer = translator(num_beams=3)
    best = generate_n_best(model, tokenizer, PROMPTS, 4, batch_size=2)
    assert [len(texts) for texts in best] == [4] * len(PROMPTS)
    assert [texts[0].text for texts in best] == generate(model, tokenizer, PROMPTS, beams=4)
    for prompt, texts in zip(PROMPTS, best, strict=True):
        scores = [text.score for text in texts]
        assert scores == sorted(scores, reverse=True)
        ids = torch.tensor([tokenizer.encode(prompt)])
        found: Tensor = beam_search_ids(model, ids, beams=4, n_best=4).scores
        assert scores == pytest.approx(found[0].tolist(), abs=1e-5)
    assert generate_n_best(model, tokenizer, PROMPTS[0], 3) == generate_n_best(model, tokenizer, PROMPTS[0], 3, beams=3)
    with pytest.raises(UserError, match="n_best"):
        generate_n_best(model, tokenizer, PROMPTS, 4, beams=3)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = translator()
    af.save(model, tmp_path / "model", tokenizer=tokenizer)
    command = ["generate", str(tmp_path / "model"), "the cat", "--max-new-tokens", "9"]

    def said(*flags: str) -> str:
        assert main([*command, *flags]) == 0
        return capsys.readouterr().out

    asked: dict[str, Any] = {"max_new_tokens": 9, "length_penalty": 0.5, "early_stopping": True}
    flags = ["--length-penalty", "0.5", "--early-stopping", "true"]
    assert said("--beams", "4", *flags) == generate(model, tokenizer, "the cat", beams=4, **asked)[0] + "\n"
    best = generate_n_best(model, tokenizer, "the cat", 2, beams=4, **asked)[0]
    lines = "".join(f"{text.score:.4f}  {text.text}\n" for text in best)
    assert said("--beams", "4", "--n-best", "2", *flags) == lines
    assert main([*command, "--n-best", "2", "--temperature", "1"]) == 2
    assert "--n-best" in capsys.readouterr().err
    assert main([*command, "--n-best", "5", "--beams", "2"]) == 2
    assert "n_best" in capsys.readouterr().err
