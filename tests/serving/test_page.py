"""The page of a server in a browser: it shows the model's own answers and goes on from any of their tokens."""

from __future__ import annotations

import codecs
import json
import re
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch

from anyformer.generation import generate_ids
from anyformer.serving.page import rendered
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import Server
from anyformer.tokenizer.prompt import encode_conversation, encode_decoder_prompt, render_conversation
from tests.browser import LOOKS, Browse, Chromium, Look, assert_readable, looks, watched
from tests.finetuning import toys
from tests.serving.running import running, small_models, small_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Running = tuple[httpx.Client, Server]
EVIL = "<img src=x onerror=alert(1)>"
NEW = 16


@pytest.fixture(scope="module")
def served() -> Generator[Running]:
    """A model with a chat template, one without whose name is HTML, an encoder-decoder, and one that writes nothing."""
    models = small_models()
    with running({**models, EVIL: (models["gpt"][0], small_tokenizer(None)), "t5": toys.encoder_decoder()}) as both:
        asked = [{"role": "user", "content": "the cat sat on the mat"}]
        for name in ("gpt", "t5"):  # the first step may compile kernels, for longer than a page waits
            body = {"model": name, "messages": asked, "max_tokens": 2}
            assert both[0].post("/v1/chat/completions", json=body, timeout=300).status_code == 200
        yield both


def opened(browse: Browse, served: Running, look: Look = LOOKS[0]) -> Page:
    """The page, with answers of 16 tokens, each the likeliest."""
    page = browse(str(served[0].base_url), look)
    page.locator("#examples button").first.wait_for()
    page.locator("#settings").evaluate("(settings) => { settings.open = true; }")
    page.locator("#temperature").fill("0")
    page.locator("#most").fill("4")
    if look.phone:
        page.locator("#settings summary").tap()
    return page


def ask(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    settle(page)


def settle(page: Page) -> None:
    page.locator("#turns > li").last.wait_for()
    page.locator("#send", has_text="Send").wait_for(timeout=60_000)


def answer(page: Page, number: int = -1) -> Locator:
    return page.locator(".answer").nth(number)


def pieces(one: Locator) -> list[str]:
    return one.locator(".token").all_text_contents()


def texts(served: ServedModel, ids: Sequence[int]) -> list[str]:
    """The characters that each token completes."""
    assert served.token_text is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(served.token_text.bytes(token)) for token in ids]


def greedy(served: ServedModel, prompt: list[int], new: int = NEW) -> list[int]:
    """The likeliest tokens without an end of the text."""
    [ids] = generate_ids(served.model, torch.tensor([prompt]), max_new_tokens=new)
    return [token for token in ids.tolist() if token not in served.ends]


def conversation(served: ServedModel, *said: str) -> list[int]:
    tokenizer = served.require_tokenizer()
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return encode_conversation(tokenizer, render_conversation(tokenizer, messages, True))


@looks
def test_an_answer_is_colored_and_goes_on_from_an_alternative(look: Look, browse: Browse, served: Running):
    one = served[1].models["gpt"]
    page = opened(browse, served, look)
    assert_readable(page)
    ask(page, "the cat")
    prompt = conversation(one, "the cat")
    ids = greedy(one, prompt)
    assert pieces(answer(page)) == texts(one, ids)
    with torch.no_grad():
        log_p = one.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 :].log_softmax(-1)
    shown = (
        answer(page).locator(".token").evaluate_all("(all) => all.map((e) => Number(e.style.getPropertyValue('--p')))")
    )
    assert shown == pytest.approx([float(log_p[i, token].exp()) for i, token in enumerate(ids)], abs=2e-4)
    assert re.search(
        r"16 tokens.*s to the first.*perplexity \d", answer(page).locator(".speed").inner_text(), re.DOTALL
    )
    token = answer(page).locator(".token").nth(3)
    token.tap() if look.phone else token.hover()
    best = log_p[3].topk(8)
    shares = page.locator("#others li span").all_text_contents()
    assert shares == [f"{100 * p:.1f} %" if p >= 0.01 else f"{100 * p:.2f} %" for p in best.values.exp().tolist()]
    assert_readable(page)
    which = next(i for i in range(1, 8) if int(best.indices[i]) not in one.ends)
    page.locator("#others button").nth(which).click()
    settle(page)
    branch = [*ids[:3], int(best.indices[which])]
    assert pieces(answer(page)) == texts(one, branch + greedy(one, prompt + branch))
    assert "2 of 2" in answer(page).locator(".versions").inner_text()
    assert_readable(page)
    page.get_by_label("Version before").click()
    assert pieces(answer(page)) == texts(one, ids)


@pytest.mark.slow
def test_messages_are_edited_and_answers_written_again(browse: Browse, served: Running):
    page, sent = opened(browse, served), list[Any]()
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    page.fill("#system", "be brief")
    ask(page, "the cat")
    said = "".join(pieces(answer(page)))
    ask(page, "on the mat")
    assert [message["content"] for message in sent[-1]["messages"]] == ["be brief", "the cat", said, "on the mat"]
    page.get_by_role("button", name="Edit").first.click()
    page.locator("#turns textarea").fill("the mat")
    assert_readable(page)
    page.locator("#turns textarea").press("Enter")
    settle(page)
    assert page.locator("#turns > li").count() == 1
    assert [message["content"] for message in sent[-1]["messages"]] == ["be brief", "the mat"]
    page.get_by_role("button", name="Go on").click()
    settle(page)
    assert len(sent[-1]["prefix_ids"]) == NEW
    assert len(pieces(answer(page))) == 2 * NEW
    page.get_by_role("button", name="Again").click()
    settle(page)
    assert "prefix_ids" not in sent[-1]
    assert "3 of 3" in answer(page).locator(".versions").inner_text()
    page.get_by_role("button", name="New").click()
    assert page.locator("#turns > li").count() == 0


@pytest.mark.slow
def test_an_answer_is_stopped(browse: Browse, served: Running, monkeypatch: pytest.MonkeyPatch):
    engine = served[1].models["gpt"].worker.engine
    assert engine is not None
    step = engine.step

    def slow() -> bool:
        time.sleep(0.05)
        return step()

    monkeypatch.setattr(engine, "step", slow)
    page = opened(browse, served)
    page.locator("#most").fill("8")
    page.locator("#examples button").first.click()
    answer(page).locator(".token").nth(2).wait_for()
    page.locator("#send", has_text="Stop").click()
    settle(page)
    assert "stopped" in answer(page).locator(".speed").inner_text()
    deadline = time.monotonic() + 5
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.running


@pytest.mark.slow
def test_two_models_side_by_side_by_keyboard(browse: Browse, served: Running):
    base = served[1].models[EVIL]
    page = opened(browse, served)
    page.locator("#model").select_option(EVIL)
    assert page.get_by_label("Continue").is_checked()
    page.locator("#beside").select_option("t5")
    ask(page, "the <b>cat</b>")
    prompt = encode_decoder_prompt(base.require_tokenizer(), "the <b>cat</b>")
    ids = greedy(base, prompt)
    first, second = answer(page, 0), answer(page, 1)
    assert pieces(first) == texts(base, ids)
    assert (first.locator(".given").inner_text(), second.locator(".given").count()) == ("the <b>cat</b>", 0)
    assert first.locator("h2").inner_text() == EVIL
    assert page.locator("main :is(img, b)").count() == 0
    assert_readable(page)
    tokens = first.get_by_role("button", name="Tokens")
    tokens.press("Enter")
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in page.locator("#tokens-head").inner_text()
    page.keyboard.press("Escape")
    assert tokens.evaluate("(button) => button === document.activeElement")
    tokens.press("Enter")
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    settle(page)
    assert pieces(first)[0] == texts(base, ids)[0]
    assert first.locator(".chosen").count() == 1
    assert "2 of 2" in first.locator(".versions").inner_text()


def test_tokens_are_text_whatever_they_say(browse: Browse, served: Running):
    spelled = [EVIL.encode(), "é".encode()[:1], "é".encode()[1:], b"\n", "\u202eabc".encode()]
    content = [
        {"id": 5 + i, "token": token.decode("utf-8", "replace"), "bytes": list(token), "logprob": -1.0 - i}
        for i, token in enumerate(spelled)
    ]
    chunk: dict[str, Any] = {"logprobs": {"content": [{**each, "top_logprobs": content} for each in content]}}
    lines = [{"choices": [{**chunk, "finish_reason": None}]}, {"error": {"message": EVIL}}]
    page = opened(browse, served)
    body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "hello")
    assert pieces(answer(page)) == [EVIL, "", "é", "\n", "\u202eabc"]
    assert answer(page).locator(".note").inner_text() == EVIL
    answer(page).locator(".token").first.hover()
    assert page.locator("#tokens bdi").first.inner_text() == EVIL.replace(" ", "␣")
    assert page.locator("img").count() == 0
    assert_readable(page)


@pytest.mark.slow
def test_a_key_is_asked_for(chromium: Chromium):
    # Chromium itself notes in the console that the server refused.
    with pytest.raises(AssertionError, match=r"\A(error: .* 401 .*\n?){2}\Z"):
        give_keys(chromium, "wrong", "secret")


def give_keys(chromium: Chromium, *keys: str) -> None:
    with running(small_models(), key=keys[-1]) as served, watched(chromium) as browse:
        page = browse(str(served[0].base_url))
        for key in keys:
            page.locator("#lock-note.bad" if key != keys[0] else "#key").wait_for()
            assert_readable(page)
            page.fill("#key", key)
            page.press("#key", "Enter")
        page.locator("#most").fill("4")
        ask(page, "the cat")
        assert pieces(answer(page))


def test_the_page_is_one_file_and_runs_only_itself():
    text, policy = rendered()
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "unsafe" not in policy
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert len(re.findall(r"-src 'sha256-[\w+/]{43}='", policy)) == 2
    assert " style=" not in text
    assert not re.search(r"\son\w+=", text.partition("<script>")[0])
