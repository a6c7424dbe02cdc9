"""What fine-tuning leaves, opened by the libraries that the formats come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import anyformer as af
from anyformer.evaluation.logits import text_logits
from tests.finetuning.conftest import Tunes

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

TEXTS = ["the cat sat on the mat", "a dog .", "because it was a good or a bad dog " * 5]


def _ours(run: Path) -> torch.Tensor:
    model, tokenizer = af.load(run)
    return torch.from_numpy(text_logits(model, tokenizer, [(text, None) for text in TEXTS])[0]).float()


def _theirs(model: Any, folder: Path) -> torch.Tensor:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_a_classifier_in_transformers(tunes: Tunes) -> None:
    run = tunes("classify", "--steps=5")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model")
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.label2id == {"no": 0, "yes": 1}
    torch.testing.assert_close(_theirs(model, run / "model"), _ours(run), rtol=1e-5, atol=1e-5)


def test_a_tagger_in_transformers(tunes: Tunes) -> None:
    run = tunes("tag", "--steps=5")
    model: Any = transformers.AutoModelForTokenClassification.from_pretrained(run / "model")
    assert model.config.id2label == {0: "B-animal", 1: "B-thing", 2: "O"}
    ours, tokenizer = af.load(run)
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, ours(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flags", [["--lora=4"], ["--lora=2", "--dora", "--targets", "query", "value"]])
def test_the_adapter_of_a_classifier_in_peft(tunes: Tunes, models: Path, flags: list[str]) -> None:
    run = tunes("classify", "--steps=5", *flags)
    base: Any = transformers.AutoModelForSequenceClassification.from_pretrained(models / "encoder", num_labels=2)
    model: Any = peft.PeftModel.from_pretrained(base, str(run / "model"))
    torch.testing.assert_close(_theirs(model, run / "model"), _ours(run), rtol=1e-5, atol=1e-5)


def test_the_adapter_of_a_classifier_that_was_one_before(tunes: Tunes, models: Path, tmp_path: Path) -> None:
    """Its classifier is trained on, and saved with the adapter, as in PEFT."""
    base = tunes("classify", "--steps=2", name="base") / "model"
    run = tunes("classify", "--steps=5", "--lora=4", model=str(base), name="adapted")
    theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    model: Any = peft.PeftModel.from_pretrained(theirs, str(run / "model"))
    found = _theirs(model, base)
    torch.testing.assert_close(found, _ours(run), rtol=1e-5, atol=1e-5)
    assert not torch.equal(_head(base), _head(run))
    af.save(af.merge(af.load(run)[0]), tmp_path / "merged")
    merged: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(_theirs(merged, base), found, rtol=1e-5, atol=1e-5)


def _head(run: Path) -> torch.Tensor:
    return af.load(run)[0].state_dict()["head.labels.weight"]


def test_the_adapter_of_a_decoder_in_peft(tunes: Tunes, models: Path) -> None:
    run = tunes("chat", "--steps=5", "--lora=4")
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(models / "decoder")
    model: Any = peft.PeftModel.from_pretrained(base, str(run / "model"))
    ours, tokenizer = af.load(run)
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        found = ours(ids).logits
        torch.testing.assert_close(model.eval()(ids).logits, found, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(model(ids).logits, found, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_an_embedding_model_in_sentence_transformers(tunes: Tunes, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is no dependency of the tests")
    run = tunes("embed", "--steps=5", "--context=16")
    model: Any = library.SentenceTransformer(str(run / "model"), device="cpu")
    vectors = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(vectors, af.embed(*af.load(run), TEXTS), rtol=1e-5, atol=1e-5)
    # What it writes itself, by the names that its version has.
    model.save(str(tmp_path / "theirs"))
    torch.testing.assert_close(vectors, af.embed(*af.load(tmp_path / "theirs"), TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("named", "kind"), [("mean", "mean"), ("cls", "first"), (["lasttoken"], "last")])
def test_pooling_by_the_names_of_version_6(models: Path, tmp_path: Path, named: Any, kind: str) -> None:
    model, tokenizer = af.load(models / "encoder")
    af.save(model, tmp_path / "model", tokenizer=tokenizer)
    folder = tmp_path / "model"
    types = ["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{name}"}
        for index, (path, name) in enumerate(zip(("", "1_Pooling"), types, strict=True))
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"embedding_dimension": 16, "pooling_mode": named, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**raw, "model_max_length": 12}))
    pooling = af.load(folder)[0].config.pooling
    assert (pooling.kind, pooling.max_tokens) == (kind, 12)
    for wrong in ("weightedmean", ["mean", "cls"]):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({**settings, "pooling_mode": wrong}))
        with pytest.raises(af.UserError, match=r"asks for the pooling .* which is not supported"):
            af.load(folder)
