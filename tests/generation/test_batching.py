"""Texts in a running batch say what they say alone, whoever comes and goes."""

import threading
import time
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.adapters import LoraConfig, add_adapter, merge
from anyformer.adapters.modules import adapters
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.errors import UserError
from anyformer.generation import BatchingEngine, GenerationConfig, generate_ids
from anyformer.generation.stop_strings import StopStrings, cut_at_stop
from anyformer.model import Transformer
from tests.generation.models import DECODERS, VOCAB, WRITERS, build, recompute

few = settings(max_examples=5, derandomize=True, database=None)
UNCUT = [name for name in WRITERS if name != "dynamic"]


@pytest.mark.parametrize("name", UNCUT)
@few
@given(data=st.data())
def test_drawn_requests(name: str, data: st.DataObject) -> None:
    model = build(WRITERS[name])
    drafts = [None, "prompt", model] if model.config.is_decoder_only else [None, "prompt"]
    sizes = {"slots": data.draw(st.integers(1, 3)), "chunk": data.draw(st.integers(1, 9))}
    engine = BatchingEngine(model, capacity=24, draft=data.draw(st.sampled_from(drafts)), **sizes)
    texts = data.draw(st.lists(st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=6))
    requests, cancelled = [], set()
    for text in texts:
        new = data.draw(st.integers(1, 8))
        requests.append((text, new, engine.submit(text, max_new_tokens=new)))
        for _ in range(data.draw(st.integers(0, 3))):
            engine.step()
        if data.draw(st.integers(0, 4)) == 0:
            victim = data.draw(st.integers(0, len(requests) - 1))
            if not requests[victim][2].finished:
                before = engine.running + engine.waiting
                engine.cancel(requests[victim][2])
                assert engine.running + engine.waiting == before - 1
                cancelled.add(victim)
        assert engine.running <= engine.slots
    engine.run()
    assert engine.running == engine.waiting == 0
    for index, (text, new, request) in enumerate(requests):
        expected = recompute(model, text, new)
        if index in cancelled:
            assert request.finish_reason == "cancelled"
            assert request.tokens == expected[: len(request.tokens)]
        else:
            assert request.finish_reason == "length"
            assert request.tokens == expected


def test_a_long_prompt_does_not_hold_up_texts_that_run() -> None:
    engine = BatchingEngine(build(WRITERS[DECODERS[0]]), slots=4, chunk=16, capacity=40)
    first, second = (engine.submit([3] * length, max_new_tokens=20) for length in (9, 8))
    engine.step()
    assert len(first.tokens) == 1
    assert second.cache is None  # 7 of its tokens would take as long as 8
    engine.step()
    assert second.cache is not None
    assert second.cache.length == 4
    assert len(first.tokens) == 2


def test_nor_do_many_prompts_that_arrive_together() -> None:
    engine = BatchingEngine(build(WRITERS[DECODERS[0]]), slots=12, chunk=16, capacity=40)
    requests = [engine.submit([3, 4], max_new_tokens=20) for _ in range(12)]
    while engine.waiting:
        before = engine.running
        engine.step()
        assert engine.running - before <= (2 if before else 8)  # 4 or 16 tokens of prompts
    assert [len(each.tokens) for each in requests] == [3] * 8 + [2] * 2 + [1] * 2


@pytest.mark.parametrize("draft", [None, "prompt", "model"])
def test_a_seed_draws_the_same_in_any_company(draft: Any) -> None:
    model = build(WRITERS["grouped"])
    config = GenerationConfig(temperature=1.5, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.2, seed=4)
    alone = BatchingEngine(model, slots=1)
    first = alone.submit([3, 4, 5], config, max_new_tokens=10)
    alone.run()
    together = BatchingEngine(model, slots=3, draft=model if draft == "model" else draft)
    requests = [
        together.submit([7, 8], config, max_new_tokens=12, seed=1),
        together.submit([3, 4, 5], config, max_new_tokens=10),
    ]
    together.run()
    assert requests[1].tokens == first.tokens
    if draft == "model":
        assert 0 < requests[1].accepted <= requests[1].guessed


@pytest.mark.parametrize("name", ["other feed-forward", "rotary", "learned both"])
@few
@given(data=st.data())
def test_texts_of_several_adapters_share_a_batch(name: str, data: st.DataObject) -> None:
    model, alone = build(WRITERS[name]), dict[str | None, Transformer]()
    torch.manual_seed(0)
    for adapter in (None, "a", "b"):
        if adapter is not None:
            add_adapter(model, LoraConfig(rank=3, use_dora=adapter == "b"), adapter)
            for each in adapters(model, adapter):
                torch.nn.init.normal_(each.b, std=0.6)
        alone[adapter] = deepcopy(model)
        for module in alone[adapter].modules():
            others = [key for key in getattr(module, "adapters", None) or () if key != adapter]
            for key in others:
                del module.adapters[key]
        merge(alone[adapter])
    engine = BatchingEngine(model, slots=3, capacity=40, prefixes=4, adapters=("a", "b"), draft="prompt")
    shared, requests = list(range(3, 20)), list[Any]()
    for _ in range(data.draw(st.integers(2, 6))):
        adapter = data.draw(st.sampled_from([None, "a", "b"]))
        ids = data.draw(st.sampled_from([shared, [5, 6, 5, 6]]))
        requests.append((adapter, ids, engine.submit(ids, max_new_tokens=6, adapter=adapter)))
        engine.step()
    engine.run()
    for adapter, ids, request in requests:
        assert request.tokens == recompute(alone[adapter], ids, 6), adapter


@pytest.mark.parametrize("name", ["learned", "learned both"])
def test_what_warms_it_up_leaves_nothing(name: str) -> None:
    engine = BatchingEngine(build(WRITERS[name]), slots=3, prefixes=2)
    engine.warm_up()
    assert engine.running == engine.waiting == 0
    request = engine.submit([5, 6, 7], max_new_tokens=6)
    engine.run()
    assert request.tokens == recompute(engine.model, [5, 6, 7], 6)


def test_log_probabilities_are_the_models() -> None:
    model = build(WRITERS["rotary"])
    engine = BatchingEngine(model)
    request = engine.submit([3, 4], max_new_tokens=5, logprobs=3)
    engine.run()
    with torch.no_grad():
        log_p = model(torch.tensor([[3, 4, *request.tokens]])).logits[0, 1:-1].log_softmax(-1)
    for row, said in zip(log_p, request.logprobs, strict=True):
        assert abs(float(row[said.token]) - said.logprob) < 1e-4
        assert list(said.top) == row.topk(3).indices.tolist()


@pytest.mark.parametrize(
    ("prompt", "new", "named"), [([], 3, "empty"), ([3] * 40, 20, "context|room"), ([3], 0, "max_new"), ("a", 3, "ids")]
)
def test_what_cannot_be_written_is_refused_at_once(prompt: list[int] | str, new: int, named: str) -> None:
    engine = BatchingEngine(build(WRITERS["learned"]))
    with pytest.raises(UserError, match=named):
        engine.submit(prompt, max_new_tokens=new)
    assert engine.waiting == 0


def test_it_says_what_generate_says() -> None:
    model = build(WRITERS["learned both"])
    engine = BatchingEngine(model)
    request = engine.submit([5, 6, 7], max_new_tokens=9)
    engine.run()
    assert request.tokens == generate_ids(model, torch.tensor([[5, 6, 7]]), max_new_tokens=9)[0].tolist()


@few
@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said = "".join(cut_at_stop(pieces, stops))
    places = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    # In pieces the stop that is complete first ends the text; in one piece that which begins first.
    allowed = {text[:begin] for _, begin in places} or {text}
    assert said in allowed


def test_half_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["<end>"])
    assert [stops.push(piece) for piece in ("one <", "e", "x", "<end", ">two")] == ["one ", "", "<ex", "", ""]
    assert stops.stopped


def test_a_request_that_is_over_can_be_iterated_again() -> None:
    engine = BatchingEngine(build(WRITERS["learned"]))
    request = engine.submit([5, 6, 7], max_new_tokens=3)
    engine.run()
    for _ in range(3):
        thread = threading.Thread(target=lambda: list(request), daemon=True)
        thread.start()
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.mark.parametrize("where", ["step", "prompt"])
def test_a_step_that_raises_ends_every_text(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchingEngine(build(WRITERS["learned"]), slots=2)
    requests = [engine.submit([5, 6, 7], max_new_tokens=9) for _ in range(4)]
    if where != "prompt":
        engine.step()
        assert engine.running == 2

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_step", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            engine.run()
    assert [request.finish_reason for request in requests] == ["error"] * 4
    assert [list(request) for request in requests] == [[]] * 4
    assert engine.running == engine.waiting == 0
    # The engine itself goes on.
    again = engine.submit([5, 6, 7], max_new_tokens=9, stop_at_eos=False)
    engine.run()
    assert again.tokens == recompute(engine.model, [5, 6, 7], 9)


@pytest.mark.parametrize("name", [name for name in UNCUT if not build(WRITERS[name]).config.is_encoder_decoder])
@few
@given(data=st.data())
def test_what_prompts_have_in_common_is_read_once(name: str, data: st.DataObject) -> None:
    model, ids = build(WRITERS[name]), st.integers(3, VOCAB - 1)
    shared = data.draw(st.lists(ids, min_size=17, max_size=20))
    engine = BatchingEngine(model, slots=2, capacity=40, chunk=data.draw(st.integers(3, 30)), prefixes=2)
    read, step = [0], engine._step

    def counted(tokens: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        read.append(tokens.numel())
        return step(tokens, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_step", counted)
        for turn in range(3):
            text = shared + data.draw(st.lists(ids, min_size=1, max_size=4))
            new = data.draw(st.integers(1, 5))
            read[:] = [0]
            request = engine.submit(text, max_new_tokens=new)
            engine.run()
            assert request.tokens == recompute(model, text, new)
            assert (sum(read) < len(shared)) == (turn > 0) == (request.cached_tokens >= len(shared))


@few
@given(data=st.data())
def test_memory_of_forgotten_texts_is_used_again(data: st.DataObject) -> None:
    model, made = build(WRITERS["rotary"]), list[int]()
    engine = BatchingEngine(model, slots=2, capacity=40, prefixes=2)
    make_cache = model.make_cache

    def counted(batch: int, capacity: int) -> KeyValueCache:
        made.append(capacity)
        return make_cache(batch, capacity)

    model.make_cache = counted
    for turn in range(12):
        texts = data.draw(
            st.lists(st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=3)
        )
        if turn == 6:
            made.clear()
        requests = [engine.submit(each, max_new_tokens=4) for each in texts]
        engine.run()
        for each, request in zip(texts, requests, strict=True):
            assert request.tokens == recompute(model, each, 4)
    assert not made


def test_a_text_that_fails_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(WRITERS["rotary"])
    engine = BatchingEngine(model)
    good, bad = engine.submit([3, 4], max_new_tokens=6), engine.submit([5], max_new_tokens=6)

    def fail(logits: torch.Tensor, history: object) -> torch.Tensor:
        raise ZeroDivisionError("of its own")

    engine.step()
    bad._processors = [fail]
    with pytest.raises(ZeroDivisionError, match="of its own"):
        engine.run()
    engine.run()
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert good.tokens == recompute(model, [3, 4], 6)


def test_the_search_for_a_stop_string_is_linear() -> None:
    stops, began = StopStrings("x" * 1_000_000), time.process_time()
    assert all(stops.push("xxxx") == "" for _ in range(1000))
    assert time.process_time() - began < 1
    assert stops.push("y") == "x" * 4000 + "y"
