"""Attention of a text, and attention.html in a browser.

What was read, that rows are shares, that the model is left alone, and one sentence if not;
tests/parity/test_attention.py compares the weights with those of transformers. Every control of the page, by mouse,
touch and keyboard; and its numbers are those of the model.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import adapters
from anyformer.errors import UserError
from anyformer.learn.attention_maps import most_tokens, stacks, write_page
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.browser import Browse, Look, assert_readable, looks
from tests.finetuning import toys

if TYPE_CHECKING:
    from playwright.sync_api import Page

Pages = Callable[[str], tuple[af.Attention, Path]]
EVIL = ["<!--</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>{{ 7 }}"]
TEXT = "the cat sat on the mat and the dog ran after it"
SHORT = "the cat sat on the mat and the dog ran"


def _classifier_of_both() -> tuple[Transformer, Tokenizer]:
    """An encoder-decoder both of whose stacks read the text."""
    model, tokenizer = toys.encoder_decoder()
    return af.build(model.config.replace(head={"kind": "classification", "labels": 2, "pooling": "last"})), tokenizer


@pytest.mark.parametrize("kind", toys.MODELS)
@settings(max_examples=8)
@given(data=st.data())
def test_rows_are_shares(kind: str, data: st.DataObject):
    model, tokenizer = toys.MODELS[kind]()
    words = data.draw(st.lists(st.sampled_from(toys.WORDS.split()), min_size=1, max_size=9))
    target = data.draw(st.none() | st.just("the dog")) if kind == "both" else None
    most = data.draw(st.integers(3, 12) if kind == "both" else st.none() | st.integers(3, 12))
    found = af.attention(model, tokenizer, " ".join(words), target, max_tokens=most)
    read = found.tokens if found.source_tokens is None else found.source_tokens
    sizes = {
        "encoder": (len(read), len(read)),
        "decoder": (len(found.tokens),) * 2,
        "cross": (len(found.tokens), len(read)),
    }
    present = {"encoder": ("encoder",), "decoder": ("decoder",), "both": ("encoder", "decoder", "cross")}[kind]
    for name, size in sizes.items():
        weights = getattr(found, name)
        assert (weights is not None) == (name in present)
        if weights is None:
            continue
        layers = model.config.encoder_layers if name == "encoder" else model.config.decoder_layers
        assert weights.shape == (layers, 2, *size)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(layers, 2, size[0]), atol=1e-6, rtol=0)
        if name == "decoder":
            assert weights.triu(1).count_nonzero() == 0
    if most is not None:
        assert len(read) <= most
        assert len(found.tokens) <= most
    assert found.is_cut == (found.text_tokens > len(read) or (found.target_tokens or 0) > len(found.tokens))
    assert found.text_tokens == len(tokenizer.encode(" ".join(words)))
    assert found.generated == (kind == "both" and target is None)


def test_tokens_are_what_was_read():
    model, tokenizer = toys.encoder()
    found = af.attention(model, tokenizer, "the cat sat", max_tokens=4)
    assert found.tokens == ("[CLS]", "the", "cat", "[SEP]")  # what is around the text stays
    assert found.text_tokens == 5
    model, tokenizer = toys.decoder()
    assert "".join(af.attention(model, tokenizer, SHORT).tokens) == SHORT
    assert "".join(af.attention(model, tokenizer, "caf\u00e9").tokens) != "caf\ufffd"
    model, tokenizer = toys.encoder_decoder()
    found = af.attention(model, tokenizer, SHORT, "a good dog")
    start = tokenizer.decode([tokenizer.pad], skip_special=False)
    assert found.tokens[0] == start
    assert "".join(found.tokens[1:]).strip() == "a good dog"  # without the end-of-text, which is only predicted


def test_without_a_target_one_is_generated():
    model, tokenizer = toys.encoder_decoder()
    found = af.attention(model, tokenizer, SHORT, max_tokens=12)
    greedy: list[int] = af.generate_ids(model, torch.tensor([tokenizer.encode(SHORT)]), max_new_tokens=11)[0].tolist()
    greedy = greedy[:-1] if greedy[-1] == tokenizer.eos else greedy
    assert found.generated
    assert len(found.tokens) == 1 + len(greedy)
    given_ = af.attention(model, tokenizer, SHORT, tokenizer.decode(greedy))
    if given_.tokens == found.tokens:
        assert torch.equal(given_.cross, found.cross)


def test_a_classifier_of_two_stacks_reads_its_text_in_both():
    model, tokenizer = _classifier_of_both()
    found = af.attention(model, tokenizer, "the cat sat")
    assert found.source_tokens is not None
    assert len(found.tokens) == len(found.source_tokens)
    assert found.tokens[1:] == found.source_tokens[:-1]
    assert found.cross is not None
    assert not found.generated


def test_an_adapter_counts_merged_or_not():
    model, tokenizer = toys.decoder()
    plain = af.attention(model, tokenizer, SHORT)
    add_adapter(model, LoraConfig(rank=2))
    with torch.no_grad():
        for adapter in adapters(model):
            for parameter in adapter.parameters():
                parameter.normal_(std=0.3)
    beside = af.attention(model, tokenizer, SHORT)
    merged = af.attention(af.merge(model), tokenizer, SHORT)
    torch.testing.assert_close(beside.decoder, merged.decoder, atol=1e-5, rtol=0)
    assert (beside.decoder - plain.decoder).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["bfloat16", "int8"])
def test_rows_of_rounded_weights_are_shares(change: str):
    model, tokenizer = toys.decoder()
    model = model.bfloat16() if change == "bfloat16" else model
    if change == "int8":
        af.quantize(model, "int8")
    found = af.attention(model, tokenizer, SHORT)
    assert found.decoder is not None
    assert found.decoder.dtype == torch.float32
    torch.testing.assert_close(found.decoder.sum(dim=-1), torch.ones(found.decoder.shape[:3]), atol=1e-6, rtol=0)


def test_the_model_is_left_as_it_was():
    model, tokenizer = toys.decoder(dropout=0.1)
    model.train()
    before = af.attention(model, tokenizer, SHORT)
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(before.decoder, af.attention(model, tokenizer, SHORT).decoder)


def _error(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        af.attention(*arguments, **options)
    return str(error.value)


def test_errors_are_sentences():
    encoder, decoder, both = (made() for made in toys.MODELS.values())
    assert "The text is empty" in _error(*encoder, " \n")
    assert "The target is empty" in _error(*both, SHORT, "")
    for model in (encoder, decoder):
        assert "single stack" in _error(*model, SHORT, "a target")
    assert "classifies" in _error(*_classifier_of_both(), SHORT, "a target")
    assert "came without a tokenizer" in _error(decoder[0], None, SHORT)
    assert "the model can read 32" in _error(*encoder, SHORT * 9)
    assert "at least 1" in _error(*decoder, SHORT, max_tokens=0)
    bare = af.build(both[0].config.replace(head=replace(both[0].config.head, kind="none")))
    assert "no language-model head" in _error(bare, both[1], SHORT)
    assert af.attention(bare, both[1], SHORT, "the dog").cross is not None
    with torch.no_grad():
        decoder[0].token_embedding.weight.fill_(torch.nan)
    assert "NaN" in _error(*decoder, SHORT)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """The page of a model of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, tuple[af.Attention, Path]] = {}

    def page(kind: str) -> tuple[af.Attention, Path]:
        if kind not in made:
            found = af.attention(*toys.MODELS[kind](), TEXT, "a good dog" if kind == "both" else None)
            made[kind] = found, write_page(found, folder / f"{kind}.html", model="toy")
        return made[kind]

    return page


def _pixels(page: Page, selector: str) -> Any:
    """The number of colors in a canvas."""
    return page.evaluate(
        """(selector) => {
          const canvas = document.querySelector(selector);
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(data.buffer)).size;
        }""",
        selector,
    )


@looks
def test_it_can_be_read_by_everybody(look: Look, pages: Pages, browse: Browse):
    page = browse(pages("both")[1], look)
    assert_readable(page)
    for number in (1, 2):
        page.locator(".stacks input").nth(number).check()
        page.locator(".heads button").last.click()
        page.locator("select").select_option(index=1)
        assert _pixels(page, "canvas.map") > 2
    assert_readable(page)
    page.locator(".view input").nth(2).check()
    page.locator(".without input").check()
    assert page.locator("svg.lines line").count() > 2
    assert_readable(page)


@pytest.mark.parametrize(
    "kind", [kind if kind == "both" else pytest.param(kind, marks=pytest.mark.slow) for kind in toys.MODELS]
)
def test_weights_are_those_of_the_model(kind: str, pages: Pages, browse: Browse):
    found, file = pages(kind)
    page = browse(file)
    for number, stack in enumerate(stacks(found)):
        weights = getattr(found, stack["name"])
        data = torch.frombuffer(bytearray(base64.b64decode(stack["weights"])), dtype=torch.uint8)
        torch.testing.assert_close(data.view(weights.shape) / 255, weights, atol=0.5 / 255 + 1e-6, rtol=0)
        if len(stacks(found)) > 1:
            page.locator(".stacks input").nth(number).check()
        layers, heads, queries, keys = weights.shape
        assert page.locator(".heads button").count() == layers * heads
        for layer, head in ((0, 0), (layers - 1, heads - 1)):
            page.locator(f'.heads button[data-head="{layer * heads + head}"]').click()
            assert page.locator(".head").inner_text() == f"Layer {layer + 1}, head {head + 1}"
            for query in (0, queries - 1):
                page.locator(f'.strip.queries button[data-index="{query}"]').hover()
                weight, key = weights[layer, head, query].max(dim=-1)
                said = page.locator(".said").inner_text().split(" attends to ")[1]
                name = stack["keys"][int(key)].strip() or "␣"
                share = round(round(float(weight) * 255) / 255 * 100)
                assert f"{share}%" in said.split(",")[0]
                if (weights[layer, head, query] > float(weight) - 1 / 255).sum() == 1:
                    assert said.startswith(f"“{name}”")
            if stack["crosses"]:
                page.locator(f'.strip.keys button[data-index="{keys - 1}"]').hover()
                assert " is attended by " in page.locator(".said").inner_text()


def _lines(page: Page) -> dict[tuple[int, int, int], float]:
    """The shares that are drawn as lines, by head, query and key."""
    drawn = page.locator("svg.lines line").evaluate_all(
        "all => all.map(({ dataset: d }) => [[d.head, d.query, d.key].map(Number), Number(d.share)])"
    )
    return {tuple(ends): share for ends, share in drawn}


@pytest.mark.parametrize("kind", ["decoder", "both"])
def test_lines_are_the_weights(kind: str, pages: Pages, browse: Browse):
    found, file = pages(kind)
    page = browse(file)
    number = len(stacks(found)) - 1  # of an encoder-decoder the cross-attention, whose sides differ
    weights = getattr(found, stacks(found)[number]["name"])
    if number:
        page.locator(".stacks input").nth(number).check()
    assert page.locator("svg.lines").is_hidden()
    page.locator(".view input").nth(1).check()
    assert page.locator("canvas.map").is_hidden()
    (layers, heads), whole = weights.shape[:2], weights.flatten(0, 1)
    first = (layers - 1) * heads  # of the last layer
    page.locator(f'.heads button[data-head="{first}"]').click()
    lines = _lines(page)
    expected = {(first, query, key) for query, key in (whole[first] > 0.035).nonzero().tolist()}
    assert expected <= lines.keys()
    assert lines == pytest.approx({ends: float(whole[ends]) for ends in lines}, abs=0.003)
    page.locator(".view input").nth(2).check()
    assert {head for head, _, _ in _lines(page)} == set(range(first, first + heads))
    assert page.locator(".legend span").count() == heads
    # A token that is pointed at shows its own lines, at the right those that come to it.
    for side, place in (("queries", 1), ("keys", 2)):
        page.locator(f'svg.lines text[data-side="{side}"][data-index="3"]').hover()
        shown = page.locator("svg.lines line:not(.away)").evaluate_all(
            "all => all.map(({ dataset: d }) => [d.head, d.query, d.key].map(Number))"
        )
        assert {ends[place] for ends in shown} == {3}
    assert " is attended by " in page.locator(".said").inner_text()


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_the_share_of_the_first_token_is_hidden_on_request(kind: str, pages: Pages, browse: Browse):
    found, file = pages(kind)
    page = browse(file)
    (stack,) = stacks(found)
    weights = getattr(found, stack["name"]).flatten(0, 1)[0]
    before = _pixels(page, "canvas.map")
    assert page.locator(".without-note").is_hidden()
    page.locator(".without input").check()
    assert page.locator(".without-note").is_visible()
    page.locator('.heads button[data-head="0"]').click()
    page.locator(".view input").nth(1).check()
    lines = _lines(page)
    assert lines
    rest = weights.clone()
    rest[:, 0] = 0
    rest /= rest.sum(dim=-1, keepdim=True)
    for (_, query, key), share in lines.items():
        assert key > 0
        assert share == pytest.approx(float(rest[query, key]), abs=0.02)
    page.locator(".without input").uncheck()
    assert any(key == 0 for _, _, key in _lines(page))
    page.locator(".view input").nth(0).check()
    assert _pixels(page, "canvas.map") > 2 < before


def test_a_token_is_pinned_by_mouse(pages: Pages, browse: Browse):
    page = browse(pages("decoder")[1])
    tokens, said = page.locator(".strip.queries button"), page.locator(".said")
    tokens.nth(3).click()
    assert tokens.nth(3).get_attribute("aria-pressed") == "true"
    pinned = said.inner_text()
    tokens.nth(1).hover()
    assert said.inner_text() != pinned
    page.locator("h1").hover()
    assert said.inner_text() == pinned
    page.locator(".direction input").nth(1).check()
    assert " is attended by " in said.inner_text()
    tokens.nth(3).click()
    page.locator("h1").hover()
    assert said.inner_text() == "No token is chosen."
    box = page.locator("canvas.map").bounding_box()
    assert box is not None
    page.locator(".direction input").nth(0).check()
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] - 4)
    page.locator("h1").hover()
    assert page.locator('.strip.queries [aria-pressed="true"]').count() == 1


def test_a_token_is_pinned_by_touch(pages: Pages, browse: Browse):
    page = browse(pages("decoder")[1], Look(width=390))
    token = page.locator(".strip.queries button").nth(4)
    token.tap()
    assert token.get_attribute("aria-pressed") == "true"
    page.locator(".heads button").nth(2).tap()
    assert page.locator(".head").inner_text() == "Layer 2, head 1"


def test_the_keyboard_reaches_everything(pages: Pages, browse: Browse):
    page = browse(pages("decoder")[1])
    said, head = page.locator(".said"), page.locator(".head")
    tokens = page.locator(".strip.queries button")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert tokens.nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("End")
    last = said.inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")  # to the choice of an order
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    assert said.inner_text() == "No token is chosen." != last
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    assert head.inner_text() == "Layer 1, head 1"
    page.keyboard.press("ArrowDown")
    assert head.inner_text() == "Layer 2, head 1"
    page.keyboard.press("ArrowRight")
    assert head.inner_text() == "Layer 2, head 2"
    assert page.locator('.heads [aria-checked="true"]').count() == 1


def test_heads_are_sorted(pages: Pages, browse: Browse):
    found, file = pages("encoder")
    page = browse(file)
    for pattern in stacks(found)[0]["patterns"]:
        page.locator("select").select_option(pattern["name"])
        order = page.locator(".heads button").evaluate_all("all => all.map((each) => Number(each.dataset.head))")
        scores = [pattern["scores"][head] for head in order]
        assert scores == sorted(scores, reverse=True)
        assert sorted(order) == list(range(len(scores)))
        shown = page.locator(".heads button b").first.inner_text()
        assert shown in (f"{round(scores[0] * 100)}%", "<1%")
        assert page.locator(".heads button").first.get_attribute("aria-checked") == "true"


@pytest.mark.parametrize("evil", EVIL)
def test_texts_of_others_stay_texts(evil: str, browse: Browse, tmp_path: Path):
    weights = torch.ones(1, 1, 1, 1)
    found = af.Attention(text=evil, tokens=(evil,), decoder=weights, text_tokens=1)
    page = browse(write_page(found, tmp_path / "page.html", model=evil))
    assert page.locator("h1").inner_text() == evil
    assert page.locator(".strip.queries button").inner_text() == evil
    assert page.locator("img").count() == 0


def test_a_page_of_any_model_is_small(tmp_path: Path):
    for name in ("gpt2", "gpt2-xl", "bert-base", "t5-small", "llama-3.2-1b", "transformer-base"):
        config = af.preset(name)
        count = most_tokens(config)
        assert 8 <= count <= 64
        heads = config.attention.heads * (
            config.encoder_layers + config.decoder_layers * (1 + config.is_encoder_decoder)
        )
        assert heads * count**2 <= 4_000_000


def test_what_is_there_is_not_lost(tmp_path: Path):
    file = tmp_path / "notes.html"
    file.write_text("mine")
    found = af.Attention(text="a", tokens=("a",), decoder=torch.ones(1, 1, 1, 1), text_tokens=1)
    with pytest.raises(UserError, match="no page of anyformer's"):
        write_page(found, file)
    assert file.read_text() == "mine"
    other = write_page(found, tmp_path / "page.html")
    write_page(found, other)
    assert json.loads(other.read_text().split('<script type="application/json">')[1].split("</script>")[0])
