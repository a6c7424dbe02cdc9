"""README.md of a fine-tuned model, as the hub's own library reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import anyformer as af
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.finetuning.model_card import escape, write_card
from anyformer.pages.formatting import count
from anyformer.runs.directory import base_name
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes
from tests.finetuning.test_report import classified, evaluation

_RESULT: dict[str, Any] = {"metrics": {}, "general": None, "classes": [], "answers": [], "notes": []}


def _card(run: Path) -> ModelCard:
    return ModelCard.load(run / "model" / "README.md")


def test_of_a_classifier(tunes: Tunes, tmp_path: Path) -> None:
    base = tunes("classify", "--steps=1", rows=classified(), name="first") / "model"
    run = tunes("classify", "--steps=40", "--learning-rate=2e-2", rows=classified(), model=str(base))
    card, found = _card(run), evaluation(run)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.model_name == "run"
    assert data.get("base_model") is None  # a folder of this machine
    assert data.eval_results is not None
    values = {each.metric_type: each.metric_value for each in data.eval_results}
    assert values == pytest.approx({name: each["after"] for name, each in found["metrics"].items()}, abs=1e-6)
    text = card.text
    assert str(tmp_path) not in card.content
    assert "AutoModelForSequenceClassification.from_pretrained(PATH)" in text
    assert f"| accuracy | {found['metrics']['accuracy']['before']:.3f} |" in text
    assert "| w\\*\\*f \\| &lt;b&gt; | " in text
    assert "| learning rate | 0.02 |" in text
    assert "A fine-tuned version of first." in text  # a run's name, and not that of its folder model/
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    tokens = steps[-1]["tokens"] / steps[-1]["step"]
    assert tokens < 8 * 32  # as they were, and not batch size times context
    assert f"| tokens a step | {tokens:,.0f} |" in text
    size = sum(weight.numel() for weight in af.load(run)[0].parameters())
    assert f"| parameters | {count(size)} |" in text
    assert "## Examples" in text


def test_of_an_adapter_of_a_chat(tunes: Tunes) -> None:
    fence = {"role": "assistant", "content": "no ```<script>alert(1)</script>"}
    rows = [{"messages": [row["messages"][0], fence]} for row in toys.rows("chat")]
    card = _card(tunes("chat", "--steps=1", "--lora=2", rows=rows))
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert "lora" in (card.data.tags or [])
    assert re.search(r"\| parameters \| [\d.k]+, [\d.k]+ trained \|", card.text)
    assert "PeftModel.from_pretrained(base, PATH)" in card.text
    # What is in an example can't end the block that it is in.
    assert "\n\n````\nasked:\n" in card.text
    assert "\n\nright:\nno ```<script>alert(1)</script>\n" in card.text


def test_of_an_embedding_model(tunes: Tunes) -> None:
    card = _card(tunes("embed", "--steps=1"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "SentenceTransformer(PATH)" in card.text


def test_names_of_the_hub_are_kept_and_others_are_escaped(tmp_path: Path) -> None:
    config = CompleteFinetuneConfig(
        base="someone/model", data=("hf:glue:sst2", "a/b.csv"), task="completion", labels=("x",), lora=8, context=64
    )
    name = "x\n---\nlicense: mit\n# <b>"
    write_card(tmp_path, name, config, {**_RESULT, "notes": ["a <img src=x> *note*"]}, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.get("base_model") == "someone/model"
    assert card.data.get("base_model_relation") == "adapter"
    assert card.data.get("datasets") == ["glue"]
    assert card.data.get("license") is None
    assert "# x --- license: mit # &lt;b&gt;" in card.text
    assert "<img" not in card.text


def test_a_base_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "good" / "model"
    run.mkdir(parents=True)
    (run.parent / "config.yaml").touch()
    cached = tmp_path / "hub" / "models--someone--small" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    names = {"someone/model": "someone/model", "runs/good": "good", str(run): "good", str(cached): "someone/small"}
    names[str(tmp_path / "small-model" / "model")] = "small-model"
    assert {base: base_name(base) for base in names} == names


def test_a_text_is_one_line_that_says_just_what_it_is() -> None:
    assert escape("a|b\n`c` <d> [e](f) *g*_h_ \x1b[31m") == (
        "a\\|b \\`c\\` &lt;d&gt; \\[e\\](f) \\*g\\*\\_h\\_ " + escape("\x1b[31m")
    )
    assert "\x1b" not in escape("\x1b[31m")
