"""model.html in a browser: the model's own answers, every control by mouse, touch and keyboard, and its first text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import anyformer as af
from anyformer.blocks.norm import NORMS, RMSNorm
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.families import PRESETS
from anyformer.learn.explain import check, explain, first_text
from anyformer.tokenizer.prompt import encode_decoder_prompt
from tests.browser import Browse, Look, assert_readable, looks
from tests.finetuning import toys
from tests.learn.explain.javascript import needs_node, run
from tests.learn.explain.test_description import close, rounded
from tests.learn.test_eject import small

if TYPE_CHECKING:
    from playwright.sync_api import Page

Pages = Callable[[str], tuple[af.Transformer, af.Tokenizer, Path]]
TEXT, SOURCE = "the cat sat on the mat", "the dog ran after it"
EVIL = "<!--</script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 }}"
FAMILIES = {
    "gpt2": ("bpe:290", "causal"),
    "llama-3.2-1b": ("bpe:320", "any"),
    "bert-base": ("wordpiece:120", "masked"),
    "t5-small": ("unigram:90", "span_corruption"),
    "transformer-base": ("char", "seq2seq"),
    "m2m100_418m": ("char", "seq2seq"),
    "pythia-70m": ("bpe:290", "causal"),
    "granite-3.0-2b": ("bpe:320", "any"),
    "aya-23-8b": ("bpe:320", "any"),
}
READ = """(session, text, source) => {
  const written = [];
  session.read(text, source);
  const { ids, records } = session, logits = [...session.model.logits(records[0].output).numbers];
  for (let i = 0; session.writes && i < 12; i++) {
    written.push(session.next(0, null, 0));
    session.write(written[i]);
  }
  return { ids, logits, written };
}"""
IN_NODE = f"""
const answer = ({{ data, weights, text, source }}) =>
  ({READ})(new Session(data, new Uint8Array(Buffer.from(weights, "base64")).slice()), text, source);
"""


def model_of(name: str) -> tuple[af.Transformer, af.Tokenizer]:
    """A family at a small size, with a tokenizer as its own."""
    spec, special = FAMILIES[name]
    tokenizer = af.Tokenizer.train([toys.WORDS * 9, EVIL], spec, special=special)
    tokens = {"bos": None, "eos": (), "pad": tokenizer.pad, "decoder_start": tokenizer.pad}
    config = small(PRESETS[name]).replace(vocab_size=tokenizer.vocab_size, special_tokens=tokens, max_length=48)
    if tokenizer.pad is not None and config.embedding.padding is not None:
        config = config.replace(**{"embedding.padding": tokenizer.pad})
    torch.manual_seed(0)
    model = af.build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, tokenizer


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, tuple[af.Transformer, af.Tokenizer, Path]] = {}

    def page(name: str) -> tuple[af.Transformer, af.Tokenizer, Path]:
        if name not in made:
            model, tokenizer = model_of(name)
            (folder / f"{name}.html").write_text(explain(model, tokenizer, name=EVIL), encoding="utf-8")
            made[name] = model, tokenizer, folder / f"{name}.html"
        return made[name]

    return page


def ready(page: Page) -> Page:
    page.locator("#model").wait_for()
    page.locator(".status", has_text=re.compile("read in|written|ended|at most")).wait_for()
    return page


def same_as_torch(model: af.Transformer, tokenizer: af.Tokenizer, found: dict[str, Any]) -> None:
    """The ids, the logits and the greedy text are those of the model with the weights that a page has."""
    model, config = rounded(model), model.config
    ids, source = encode_decoder_prompt(tokenizer, TEXT, config.special_tokens), None
    if config.is_encoder_only:
        ids = tokenizer.encode(TEXT)
    elif config.is_encoder_decoder:
        start = config.special_tokens.decoder_start
        assert start is not None
        ids, source = [start, *tokenizer.encode(TEXT, special=False)], torch.tensor([tokenizer.encode(SOURCE)])
    assert found["ids"] == ids
    with torch.no_grad():
        logits = model(torch.tensor([ids]), source=source).logits
        assert logits is not None
        close(found["logits"], logits)
        for token in found["written"]:
            best = model(torch.tensor([ids]), source=source).logits[0, -1]
            assert best[token] >= best.max() - 1e-4 * best.abs().max()
            ids.append(token)
    assert bool(found["written"]) is (config.decoder_layers > 0)


@needs_node
@pytest.mark.parametrize(
    "name", [name if name == "transformer-base" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_it_computes_in_node_what_torch_does(name: str, pages: Pages) -> None:
    model, tokenizer, file = pages(name)
    page = file.read_text(encoding="utf-8")
    data, weights = (page.partition(f'id="{part}">')[2].partition("</script>")[0] for part in ("data", "weights"))
    given = {"data": json.loads(data), "weights": weights, "text": TEXT, "source": SOURCE}
    same_as_torch(model, tokenizer, run(IN_NODE, given))


@pytest.mark.parametrize(
    "name", [name if name == "gpt2" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_it_computes_in_chromium_what_torch_does(name: str, pages: Pages, browse: Browse) -> None:
    model, tokenizer, file = pages(name)
    page = ready(browse(file))
    same_as_torch(
        model, tokenizer, page.evaluate(f"([text, source]) => ({READ})(session, text, source)", [TEXT, SOURCE])
    )


@looks
def test_it_can_be_read_by_everybody(look: Look, pages: Pages, browse: Browse) -> None:
    page = ready(browse(pages("transformer-base" if look.phone else "gpt2")[2], look))
    for step in ("embedding", "block", "output"):
        page.locator(f".column.text .step.{step}").first.click()
        # A line for each part says what it is for.
        lessons = page.locator("#details .lesson").all_inner_texts()
        blocks = 5 if look.phone else 4
        assert len(lessons) == len(set(lessons)) == (blocks if step == "block" else 1)
        assert all(lesson and "undefined" not in lesson for lesson in lessons)
        assert_readable(page)
    assert page.locator("h1").inner_text() == EVIL


def test_it_is_used_by_keyboard(pages: Pages, browse: Browse) -> None:
    page = ready(browse(pages("gpt2")[2]))
    page.locator("#text").fill(TEXT)
    page.locator("#text-tokens", has_text="mat").wait_for()
    tokens = page.locator("#text-tokens button").count()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#text-tokens button").nth(tokens).wait_for()
    page.locator("#temperature").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output[for=temperature]").inner_text() == "0.1"
    page.locator("#top-k").focus()
    page.keyboard.press("Home")
    assert page.locator("output[for=top-k]").inner_text() == "1"
    # One token is drawn of one.
    assert page.locator("#details .bars li").count() == 1
    page.locator("#text-tokens button[aria-pressed=true]").focus()
    page.keyboard.press("ArrowLeft")
    place = "[...document.querySelectorAll('#text-tokens button')].findIndex((e) => e.ariaPressed === 'true')"
    assert page.evaluate(place) == tokens - 1
    page.locator(".step.output").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator("#details h3").inner_text().startswith("Block")


@pytest.mark.slow
def test_a_mask_is_filled(pages: Pages, browse: Browse) -> None:
    model, tokenizer, file = pages("bert-base")
    page = ready(browse(file))
    page.locator("#text").fill("the [MASK] sat on the [MASK]")
    page.locator("#text-tokens", has_text="sat").wait_for()
    names = page.locator("#details .bars .name").all_inner_texts()
    best = af.fill(rounded(model), tokenizer, "the [MASK] sat on the [MASK]", top=1)[0][0]
    assert names[0] == best.text.strip()
    page.locator("#details .bars button").first.click()
    assert page.locator("#text").input_value() == f"the {names[0].removeprefix('##')} sat on the [MASK]"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param({"kind": kind}, marks=[] if kind == "none" else pytest.mark.slow)
        for kind in ("classification", "token_classification", "none")
    ],
)
def test_other_heads(head: dict[str, Any], browse: Browse, tmp_path: Path) -> None:
    model, tokenizer = toys.encoder(head={"transform": None, "bias": "none", "labels": 3, **head})
    (tmp_path / "model.html").write_text(explain(model, tokenizer), encoding="utf-8")
    page = ready(browse(tmp_path / "model.html"))
    labels = 0 if head["kind"] == "none" else 3
    assert page.locator("#details .bars li").count() == labels
    # Probabilities of tokens are what a language model's head gives.
    assert page.locator(".step.output .what").inner_text() == ("labels" if labels else "hidden states")
    assert page.locator("#details .lesson").inner_text().startswith("The head weighs" if labels else "Without a head")
    page.locator(".step.block").first.click()
    assert page.locator("#details h4", has_text="Logit lens").count() == (labels > 0)
    assert page.locator(".step .guess").count() == (page.locator(".step.block").count() if labels else 0)


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = toys.decoder()
    af.save(model, tmp_path / "model", tokenizer=tokenizer)
    af.save(model, tmp_path / "dumb")
    (tmp_path / "there.html").write_text("mine")

    def said(*arguments: str) -> str:
        assert main(["explain", *arguments]) == 2
        found = capsys.readouterr().err
        assert found.count("\n") == 1
        return found

    assert "is there already" in said(str(tmp_path / "model"), "-o", str(tmp_path / "there.html"))
    assert (tmp_path / "there.html").read_text() == "mine"
    assert "there is no folder" in said(str(tmp_path / "model"), "-o", str(tmp_path / "nowhere" / "page.html"))
    assert "without a tokenizer" in said(str(tmp_path / "dumb"), "-o", str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match="124M parameters, and a page runs at most 36M"):
        check(af.preset("gpt2"), 124_439_808)


def test_the_command_writes_the_page_that_python_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = toys.decoder()
    af.save(model, tmp_path / "model", tokenizer=tokenizer)
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)  # a page says when it was written
    assert main(["explain", str(tmp_path / "model"), "-o", str(tmp_path / "page.html")]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == af.explain(str(tmp_path / "model"))


def test_blocks_of_ones_own_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "mine", RMSNorm)
    model, tokenizer = toys.decoder(norm={"kind": "mine"})
    with pytest.raises(UserError, match=r"norm.kind is 'mine', a block of your own, whose code a page can't run"):
        explain(model, tokenizer)


def test_damaged_weights_are_refused() -> None:
    model, tokenizer = toys.decoder()
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        explain(model, tokenizer)


DATA = "the cat sat on the mat\nand the dog ran after it because it was a good dog and the cat was a bad cat\n"
CODE, PROSE = "def main(self, name):\n    return", "The cat could not sleep because it was"


def _run(folder: Path, data: str, *, metrics: str = "", evaluation: object = None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"preset: gpt2-nano\ndata: [{data}]\n")
    (folder / "metrics.jsonl").write_text(metrics)
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "model").mkdir()
    return folder


def test_a_run_opens_with_its_own_data(tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    text = tmp_path / "text" / "notes.txt"
    text.parent.mkdir()
    text.write_text(DATA)
    beginning = "the cat sat on the mat\nand the dog ran after it because it"
    for data in (text, text.parent):
        run = _run(tmp_path / f"run-{data.name}", str(data))
        for directory in (run, run / "model"):
            assert first_text(model.config, tokenizer, directory) == beginning
    # What a run recorded needs no file but its own.
    sample = json.dumps({"step": 1, "sample": [{"before": "a good dog sat ", "written": "down", "after": "there"}]})
    run = _run(tmp_path / "sampled", str(tmp_path / "gone.txt"), metrics=f"{sample}\n")
    assert first_text(model.config, tokenizer, run) == "a good dog sat there"
    rows = {"answers": [], "worst": [{"question": "a bad cat and a good dog"}]}
    run = _run(tmp_path / "evaluated", str(text), metrics=f"{sample}\n", evaluation=rows)
    assert first_text(model.config, tokenizer, run) == "a bad cat and a good dog"


@pytest.mark.parametrize(("data", "expected"), [(CODE, CODE), (PROSE, PROSE)])
def test_without_a_run_it_is_what_the_tokenizer_was_made_for(data: str, expected: str) -> None:
    model, _ = toys.decoder()
    tokenizer = af.Tokenizer.train([f"{data}\n" * 50], "bpe:300")
    assert first_text(model.config, tokenizer) == expected


def test_a_word_of_it_is_masked_for_an_encoder(tmp_path: Path) -> None:
    model, tokenizer = toys.encoder()
    (tmp_path / "notes.txt").write_text("the cat sat on the mat")
    run = _run(tmp_path / "run", str(tmp_path / "notes.txt"))
    assert first_text(model.config, tokenizer, run) == f"the cat sat {tokenizer.mask_token} the mat"


@pytest.mark.parametrize(
    ("data", "evaluation"),
    [("gone.txt", None), ("1", [1]), ("notes.bin", {"answers": [{}], "worst": []}), ("'a\\0b'", {"answers": 3})],
)
def test_what_is_gone_or_broken_is_passed_over(data: str, evaluation: object, tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    (tmp_path / "notes.bin").write_bytes(b"\xff\x00")
    run = _run(tmp_path / "run", data, metrics='{"sample": 3}\nno JSON', evaluation=evaluation)
    assert first_text(model.config, tokenizer, run) == first_text(model.config, tokenizer)


def test_characters_that_the_tokenizer_lacks_are_not_shown(tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(["abc " * 99], "char", special="causal")
    model, _ = toys.decoder()
    (tmp_path / "notes.txt").write_text("\u0416\u0416\u0416 and more of it")
    found = first_text(model.config, tokenizer, _run(tmp_path / "run", str(tmp_path / "notes.txt")))
    assert found
    assert set(found) <= set("abc ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give a file away")
def test_a_config_of_another_user_names_no_files(tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    (tmp_path / "secret.txt").write_text(DATA)
    run = _run(tmp_path / "run", str(tmp_path / "secret.txt"))
    os.chown(run / "config.yaml", 12345, 12345)
    assert "cat sat" not in first_text(model.config, tokenizer, run)


def test_the_page_of_a_run_has_it(tmp_path: Path) -> None:
    model, tokenizer = toys.decoder()
    (tmp_path / "notes.txt").write_text("a good dog and a bad cat")
    run = _run(tmp_path / "run", str(tmp_path / "notes.txt"))
    af.save(model, run / "model", tokenizer=tokenizer)
    assert ">a good dog and a bad cat</textarea>" in explain(run)
    assert ">a good dog and a bad cat</textarea>" in explain(model, tokenizer, directory=run)
