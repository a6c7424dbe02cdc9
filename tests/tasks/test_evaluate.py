"""Evaluation of every task, from files to scores."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn import metrics as sklearn

import anyformer as af
from anyformer.data.examples.columns import Columns
from anyformer.errors import UserError
from anyformer.evaluation import Options
from anyformer.evaluation.perplexity import measure, read_text
from anyformer.tasks.evaluate import evaluate
from tests.evaluation.models import WORDS, decoder, encoder, encoder_decoder, vary

TEXTS = [" ".join(WORDS.split()[begin : begin + 4]) for begin in range(20)]


def _csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _head(kind: str = "classification", **head: Any) -> dict[str, Any]:
    return {"kind": kind, "pooler": "tanh" if kind == "classification" else None, **head}


def test_one_label(tmp_path: Path) -> None:
    model, tokenizer = vary(*encoder(_head(labels=3, label_names=("bad", "good", "none"))))
    labels = [("bad", "good", "none")[index % 3] for index in range(20)]
    path = _csv(tmp_path / "dev.csv", ["sentence", "label"], [[*row] for row in zip(TEXTS, labels, strict=True)])
    found = evaluate(model, tokenizer, path)
    assert found.task == "classify"
    assert found == af.evaluate(model, tokenizer, str(path), task="classify")
    said = [row.prediction for row in found.rows]
    assert len(set(said)) > 1
    assert found["accuracy"] == sklearn.accuracy_score(labels, said)
    assert found["f1"] == pytest.approx(sklearn.f1_score(labels, said, average="macro", zero_division=0))
    assert found.confusion is not None
    assert (found.confusion.matrix == sklearn.confusion_matrix(labels, said, labels=["bad", "good", "none"])).all()
    low, high = found.intervals()["accuracy"]
    assert low <= found["accuracy"] <= high
    worst = found.worst(3)
    assert all(row.reference != row.prediction for row in worst)
    losses, wrong = [row.loss for row in worst], sorted(-row.loss for row in found.rows if not row.right)
    assert losses == sorted(losses, reverse=True)
    assert -losses[-1] <= wrong[max(3, len(wrong) // 4) - 1]
    assert str(worst[0].location).startswith(str(path))
    assert af.evaluate(model, tokenizer, [path], limit=5).keys() == found.keys()


def test_numbers_stand_for_labels_without_names(tmp_path: Path) -> None:
    model, tokenizer = encoder(_head(labels=2))
    rows = [[text, index % 2] for index, text in enumerate(TEXTS)]
    found = evaluate(model, tokenizer, _csv(tmp_path / "dev.csv", ["text", "label"], rows))
    assert {row.reference for row in found.rows} == {"LABEL_0", "LABEL_1"}
    assert set(found) == {"accuracy", "f1", "mcc"}


def test_several_labels(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    model, tokenizer = encoder(_head(labels=3, label_names=names, problem_type="multi_label_classification"))
    rows = [{"text": text, "labels": [names[index % 3]] * (index % 4 > 0)} for index, text in enumerate(TEXTS)]
    found = evaluate(model, tokenizer, _jsonl(tmp_path / "dev.jsonl", rows))
    truth = np.array([[name in row["labels"] for name in names] for row in rows])
    said = np.array([[name in row.prediction for name in names] for row in found.rows])
    assert said.any()
    assert found["f1"] == pytest.approx(sklearn.f1_score(truth, said, average="micro"))
    assert found["exact_match"] == sklearn.accuracy_score(truth, said)


def test_numbers_to_be_predicted(tmp_path: Path) -> None:
    model, tokenizer = encoder(_head(labels=1))
    rows = [
        [text, other, index / 7] for index, (text, other) in enumerate(zip(TEXTS, TEXTS[3:] + TEXTS[:3], strict=True))
    ]
    path = _csv(tmp_path / "dev.csv", ["sentence1", "sentence2", "score"], rows)
    found = evaluate(model, tokenizer, path, task="classify")
    said = [float(row.prediction) for row in found.rows]
    wanted = [row[2] for row in rows]
    assert found["pearson"] == pytest.approx(stats.pearsonr(wanted, said).statistic, abs=1e-2)
    assert found["mse"] == pytest.approx(np.square(np.subtract(wanted, said)).mean(), rel=1e-2)


def test_tags(tmp_path: Path) -> None:
    names = ("O", "B-x", "I-x")
    model, tokenizer = encoder(_head("token_classification", labels=3, label_names=names), max_length=12)
    rows = [
        {"tokens": text.split() * 4, "ner_tags": [names[index % 3] for index in range(4 * len(text.split()))]}
        for text in TEXTS
    ]
    found = evaluate(model, tokenizer, _jsonl(tmp_path / "dev.jsonl", rows))
    assert set(found) == {"entity_f1", "precision", "recall", "accuracy"}
    assert 0 < found["accuracy"] < 1
    assert [row.label for row in found.classes] == ["x"]
    assert "beyond the model's context, and count as O" in found.notes[0]
    assert found.worst(1)[0].prediction.count(" for ") > 1
    dict(model.named_parameters())["head.labels.bias"].data[names.index("O")] += 1000
    found = evaluate(model, tokenizer, tmp_path / "dev.jsonl")
    count = sum(tag == "B-x" for row in rows for tag in row["ner_tags"])
    assert found.notes[-1] == f"Never right: x (0 of {count}). They need more examples, or more epochs."


def test_tags_that_are_no_entities(tmp_path: Path) -> None:
    names = ("DET", "NOUN")
    model, tokenizer = encoder(_head("token_classification", labels=2, label_names=names))
    rows = [{"tokens": text.split(), "tags": [names[len(word) % 2] for word in text.split()]} for text in TEXTS]
    found = evaluate(model, tokenizer, _jsonl(tmp_path / "dev.jsonl", rows))
    assert set(found) == {"accuracy", "f1", "mcc"}


def test_scored_pairs(tmp_path: Path) -> None:
    model, tokenizer = encoder({"kind": "none"})
    rows = [[a, b, index / 19] for index, (a, b) in enumerate(zip(TEXTS, TEXTS[5:] + TEXTS[:5], strict=True))]
    path = _csv(tmp_path / "dev.csv", ["sentence1", "sentence2", "score"], rows)
    found = evaluate(model, tokenizer, path)
    a, b = (af.embed(model, tokenizer, [row[column] for row in rows]) for column in (0, 1))
    cosines = torch.cosine_similarity(a, b).numpy()
    wanted = [row[2] for row in rows]
    assert found.task == "embed"
    assert found["spearman"] == pytest.approx(stats.spearmanr(wanted, cosines).statistic, abs=1e-6)
    assert found["pearson"] == pytest.approx(stats.pearsonr(wanted, cosines).statistic, abs=1e-5)


def test_retrieval(tmp_path: Path) -> None:
    model, tokenizer = encoder({"kind": "none"})
    rows = [{"anchor": text, "positive": text} for text in dict.fromkeys(TEXTS)]
    found = af.evaluate(model, tokenizer, _jsonl(tmp_path / "same.jsonl", rows))
    assert found == pytest.approx({"recall@1": 1, "recall@5": 1, "recall@10": 1, "mrr": 1})
    rows = [{"anchor": a, "positive": b} for a, b in zip(TEXTS, TEXTS[7:] + TEXTS[:7], strict=True)]
    found = af.evaluate(model, tokenizer, _jsonl(tmp_path / "other.jsonl", rows))
    assert 0 < found["mrr"] < 1
    json.dumps([row.right for row in found.rows])
    assert [row.right for row in found.rows] == [row.loss == 1 for row in found.rows]


def test_classes_of_neighbors(tmp_path: Path) -> None:
    model, tokenizer = encoder({"kind": "none"})
    rows = [[text + mark, index] for index, text in enumerate(TEXTS[:5]) for mark in ("", " ")]
    path = _csv(tmp_path / "dev.csv", ["text", "label"], rows)
    assert af.evaluate(model, tokenizer, path, task="embed") == {"accuracy": 1}


def test_rewriting(tmp_path: Path) -> None:
    model, tokenizer = encoder_decoder()
    written = af.generate(model, tokenizer, TEXTS[:4], max_new_tokens=8)
    targets = [*written[:3], "the dog"]
    rows = [{"source": source, "target": target} for source, target in zip(TEXTS, targets, strict=False) if target]
    options = Options(max_new_tokens=8, batch_size=2)
    found = evaluate(model, tokenizer, _jsonl(tmp_path / "dev.jsonl", rows), options=options)
    names = {"bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "perplexity"}
    assert set(found) == names | {"end_probability", "stopped"}
    assert 0 < found["exact_match"] < 1
    assert found.worst(5)[0].reference == "the dog"


def test_conversations(tmp_path: Path) -> None:
    model, tokenizer = decoder(max_length=64)
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ("yes", "no")[index % 2]}]}
        for index, text in enumerate(TEXTS)
    ]
    path = _jsonl(tmp_path / "dev.jsonl", rows)
    found = evaluate(model, tokenizer, path, options=Options(max_new_tokens=3))
    names = {"rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "perplexity", "end_probability", "stopped"}
    assert set(found) == names
    chosen = evaluate(model, tokenizer, path, options=Options(choices=("yes", "no")))
    assert set(chosen) == {"accuracy", "f1", "mcc", "perplexity"}
    assert chosen["perplexity"] == found["perplexity"]
    assert {row.prediction for row in chosen.rows} <= {"yes", "no"}
    with pytest.raises(
        UserError, match="line 2: the label is 'no', and those that can be predicted are 'yes', 'maybe'"
    ):
        af.evaluate(model, tokenizer, path, options=Options(choices=("yes", "maybe")))


def test_preferences(tmp_path: Path) -> None:
    model, tokenizer = decoder(max_length=64)
    rows = [{"prompt": text, "chosen": " yes no", "rejected": " dog"} for text in TEXTS]
    found = evaluate(model, tokenizer, _jsonl(tmp_path / "dev.jsonl", rows))
    turned = [{"prompt": text, "chosen": " dog", "rejected": " yes no"} for text in TEXTS]
    other = af.evaluate(model, tokenizer, _jsonl(tmp_path / "turned.jsonl", turned))
    assert found["accuracy"] + other["accuracy"] == pytest.approx(1)


def test_text(tmp_path: Path) -> None:
    model, tokenizer = decoder()
    path = tmp_path / "notes.txt"
    path.write_text(WORDS * 9)
    found = af.evaluate(model, tokenizer, path, task="text")
    quality = measure(model, read_text(tokenizer, [path]))
    assert found["perplexity"] == pytest.approx(quality.perplexity, rel=0.05)
    rows = [{"text": line} for line in (WORDS * 9).splitlines()]
    found = af.evaluate(model, tokenizer, _jsonl(tmp_path / "notes.jsonl", rows), task="text")
    assert set(found) == {"perplexity", "bits_per_byte"}
    assert math.isfinite(found["bits_per_byte"])


def test_columns_are_named(tmp_path: Path) -> None:
    model, tokenizer = encoder(_head(labels=2, label_names=("bad", "good")))
    rows = [[("bad", "good")[index % 2], text] for index, text in enumerate(TEXTS)]
    path = _csv(tmp_path / "dev.csv", ["verdict", "words"], rows)
    columns = Columns(text="words", label="verdict")
    assert set(af.evaluate(model, tokenizer, path, columns=columns)) == {"accuracy", "f1", "mcc"}


def test_a_difference_of_two_models_is_paired(tmp_path: Path) -> None:
    rows = [[text, ("bad", "good")[index % 2]] for index, text in enumerate(TEXTS)]
    path = _csv(tmp_path / "dev.csv", ["text", "label"], rows)
    head = _head(labels=2, label_names=("bad", "good"))
    before, after = (evaluate(*encoder(head, seed), path) for seed in (0, 1))
    differences = before.differences(after)
    low, high = differences["accuracy"]
    assert low <= after["accuracy"] - before["accuracy"] <= high
    assert before.differences(before)["accuracy"] == (0, 0)


def test_what_is_refused(tmp_path: Path) -> None:
    model, tokenizer = encoder(_head(labels=2, label_names=("bad", "good")))
    path = _csv(tmp_path / "dev.csv", ["text", "label"], [["the cat", "good"], ["the dog", "fine"]])
    with pytest.raises(UserError, match=r"dev\.csv, line 3.*'fine'"):
        af.evaluate(model, tokenizer, path)
    path = _csv(tmp_path / "other.csv", ["text", "label"], [["the cat", "good"], ["the dog", "bad"]])
    with pytest.raises(UserError, match="limit is a number of rows"):
        af.evaluate(model, tokenizer, path, limit=0)
    with pytest.raises(UserError, match="no head that labels tokens"):
        af.evaluate(
            model,
            tokenizer,
            _jsonl(tmp_path / "t.jsonl", [{"tokens": ["a", "b"], "tags": ["bad", "good"]}]),
            task="tag",
        )
    with pytest.raises(UserError, match="No data was given: there are no rows"):
        af.evaluate(model, tokenizer, [], task="classify")
    for wrong in ({"choices": ("a",)}, {"choices": ("a", "a")}):
        with pytest.raises(UserError, match="choices are at least two answers"):
            Options(**wrong)
    with pytest.raises(UserError, match="batch_size is at least 1"):
        Options(batch_size=0)


def test_pairs_with_a_class_are_compared_by_both_vectors_and_their_difference(tmp_path: Path) -> None:
    pairs = [("the cat", "the cat", "same"), ("the dog", "the dog", "same"), ("the cat", "the dog", "other")]
    pairs += [("the dog", "the cat", "other")]
    rows = [{"sentence1": a, "sentence2": b, "label": label} for a, b, label in pairs]
    model, tokenizer = encoder({"kind": "none"})
    found = af.evaluate(model, tokenizer, _jsonl(tmp_path / "p.jsonl", rows), task="embed")
    vectors = {
        text: F.normalize(af.embed(model, tokenizer, [text])[0].double(), dim=0) for text in ("the cat", "the dog")
    }
    joined = [torch.cat((vectors[a], vectors[b], (vectors[a] - vectors[b]).abs())) for a, b, _ in pairs]
    joined = torch.stack([F.normalize(each, dim=0) for each in joined])
    nearest = (joined @ joined.t() - 2 * torch.eye(4)).argmax(dim=1).tolist()
    right = [pairs[other][2] == label for other, (_, _, label) in zip(nearest, pairs, strict=True)]
    assert found["accuracy"] == sum(right) / 4
