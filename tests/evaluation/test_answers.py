"""Answers of models that write text: how likely the right ones are, which of several is chosen, and their own."""

import math
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.data.examples import ChatExample, CompletionExample, Seq2SeqExample
from anyformer.data.examples.chat import encode_chat
from anyformer.data.examples.encoded import EncodedRow, encode_completion
from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.evaluation import answers
from anyformer.model import Transformer
from tests.evaluation.models import decoder, encoder_decoder

HERE = Location(Path("x.jsonl"), 1)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = ChatExample(
    location=HERE,
    messages=[
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat on"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "ran after it"},
    ],
    loss_mask=[False, True, False, True],
)
COMPLETION = CompletionExample(location=HERE, segments=(("the cat sat ", False), ("on the mat", True)))


def _loss(model: Transformer, row: EncodedRow) -> tuple[float, int]:
    ids = torch.tensor([row.tokens])
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    assert logits is not None
    log_p = logits[0].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    learned = torch.tensor(row.loss_mask[1:])
    return -float(log_p[learned].sum()), int(learned.sum())


def test_losses_are_those_of_the_learned_tokens() -> None:
    model, tokenizer = decoder(template=TEMPLATE, max_length=128)
    parts = (("the cat", False), (" sat", True), (" on", False), (" the mat", True))
    several = CompletionExample(location=HERE, segments=parts)
    rows = [encode_chat(tokenizer, CHAT), *(encode_completion(tokenizer, each) for each in (COMPLETION, several))]
    found = answers.answer_losses(model, tokenizer, [CHAT, COMPLETION, several])
    for each, row in zip(found, rows, strict=True):
        nats, tokens = _loss(model, row)
        assert each.tokens == tokens > 2
        assert each.nats == pytest.approx(nats, rel=1e-4)
    assert [each.ends for each in found] == [2, 1, 1]
    end = EncodedRow(rows[1].tokens, [False] * (len(rows[1].tokens) - 1) + [True])
    assert math.log(found[1].end_probability) == pytest.approx(-_loss(model, end)[0], rel=1e-4)


def test_what_is_too_long_is_cut_as_in_training() -> None:
    model, tokenizer = decoder(max_length=12)
    segments = ("the cat ", False), ("sat on the mat and the dog ran " * 3, True)
    long = CompletionExample(location=HERE, segments=segments)
    lost = CompletionExample(location=HERE, segments=(("the cat sat on " * 9, False), ("the mat", True)))
    row = encode_completion(tokenizer, long)
    found = answers.answer_losses(model, tokenizer, [long, lost])
    nats, tokens = _loss(model, EncodedRow(row.tokens[:12], row.loss_mask[:12]))
    assert found[0].tokens == tokens
    assert found[0].nats == pytest.approx(nats, rel=1e-4)
    assert found[1] == answers.AnswerLoss(0.0, 0)


def test_losses_of_a_target_are_those_of_score() -> None:
    model, tokenizer = encoder_decoder()
    example = Seq2SeqExample(location=HERE, source="the cat sat", target="on the mat")
    (found,) = answers.answer_losses(model, tokenizer, [example])
    (wanted,) = af.score(model, tokenizer, [example.target], [example.source])
    assert found.nats == pytest.approx(-wanted.logprob, rel=1e-4)
    assert found.tokens == len(wanted.tokens)


def test_choices_are_scored_with_their_end() -> None:
    model, tokenizer = decoder(template=TEMPLATE, max_length=128)
    found = answers.choose(model, tokenizer, [CHAT, COMPLETION], ["yes", "no"], progress=lambda count: None)
    for example, scores in zip((CHAT, COMPLETION), found, strict=True):
        for choice, score in zip(("yes", "no"), scores, strict=True):
            other = answers.with_answer(example, choice)
            row = (
                encode_chat(tokenizer, other) if isinstance(other, ChatExample) else encode_completion(tokenizer, other)  # pyright: ignore[reportArgumentType]
            )
            assert sum(row.loss_mask) == _loss(model, row)[1]
            assert score == pytest.approx(-_loss(model, row)[0], rel=1e-4)


def test_the_last_answer_is_asked_for() -> None:
    model, tokenizer = decoder(template=TEMPLATE, max_length=128)
    found = answers.give_answers(model, tokenizer, [CHAT, COMPLETION], max_new_tokens=5)
    prompt = tokenizer.encode(tokenizer.chat(CHAT.messages[:3]), special=False)
    (wanted,) = af.generate(model, tokenizer, [prompt], max_new_tokens=5)
    texts = [each.text for each in found]
    assert texts == [wanted, *af.generate(model, tokenizer, ["the cat sat "], max_new_tokens=5)]
    assert answers.question(CHAT) == "the cat\nsat on\nthe dog"
    assert answers.answer(CHAT) == "ran after it"
    assert (answers.question(COMPLETION), answers.answer(COMPLETION)) == ("the cat sat ", "on the mat")


def test_a_question_that_is_too_long_loses_its_beginning() -> None:
    model, tokenizer = decoder(max_length=16)
    long = CompletionExample(location=HERE, segments=(("the cat sat on the mat and " * 9, False), ("ran", True)))
    (found,) = answers.give_answers(model, tokenizer, [long], max_new_tokens=50)
    ids = tokenizer.encode(answers.question(long))[-8:]
    assert found.text == af.generate(model, tokenizer, [ids], max_new_tokens=8)[0]


def test_an_answer_has_stopped_where_the_model_ends_it() -> None:
    model, tokenizer = decoder(max_length=32)
    (found,) = answers.give_answers(model, tokenizer, [COMPLETION], max_new_tokens=5)
    prompt = tokenizer.encode("the cat sat ", special=False)
    ids = af.generate_ids(model, torch.tensor([prompt]), max_new_tokens=5, stop_at_eos=False)[0].tolist()
    assert found.stopped == (tokenizer.eos in ids)
    model.config = model.config.replace(special_tokens={"eos": (ids[2],)})  # pretend that it is the end
    (found,) = answers.give_answers(model, tokenizer, [COMPLETION], max_new_tokens=5)
    assert found.stopped
    (found,) = answers.give_answers(model, tokenizer, [COMPLETION], max_new_tokens=ids.index(ids[2]) or 1)
    assert not found.stopped


def test_no_answer_is_refused() -> None:
    example = CompletionExample(location=HERE, segments=(("the cat", False),))
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: there is no answer"):
        answers.answer(example)
