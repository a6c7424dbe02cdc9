"""`anyformer evaluate`, and directories of integers made by `anyformer convert`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.evaluation.models import decoder, encoder, vary

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import adapters
from anyformer.cli.evaluate import _show_text  # pyright: ignore[reportPrivateUsage]
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.evaluation.perplexity import Quality, Text
from anyformer.runs.metrics import Evaluation
from anyformer.tokenizer import Tokenizer

WORDS = "the cat sat on the mat and the dog ran after the cat because it was a dog. " * 20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def directory(text: Path) -> Path:

    torch.manual_seed(0)
    tokenizer = Tokenizer.train([WORDS], "bpe:300")
    model = af.build(
        af.preset(
            "llama-nano",
            vocab_size=tokenizer.vocab_size,
            d_model=64,
            decoder_layers=2,
            attention={"heads": 4, "kv_heads": 2},
            feed_forward={"width": 96},
            max_length=64,
        )
    )
    af.save(model, text.parent / "model", tokenizer=tokenizer)
    return text.parent / "model"


def test_the_table_and_the_figures(directory: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(directory), "--data", str(text), "--limit", "100"]
    assert main([*command, "--compare", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["weights"] for row in rows] == ["float32", "int8", "int4"]
    assert rows[0]["bytes_of_weights"] > 3 * rows[1]["bytes_of_weights"] > 3 * rows[2]["bytes_of_weights"]
    assert rows[1]["perplexity"] == pytest.approx(rows[0]["perplexity"], rel=0.01)
    assert all(row["tokens"] == 100 for row in rows)
    assert rows[0]["divergence"] is None
    assert 0 < rows[1]["divergence"] < rows[2]["divergence"]
    assert main([*command, "--quantize", "int4"]) == 0
    out = capsys.readouterr().out
    assert "100 tokens" in out
    assert f"{rows[2]['perplexity']:.3f}" in out


@pytest.mark.parametrize("named", ["words.txt", "", "*.txt"])
def test_a_text_that_the_run_was_trained_on(
    named: str, directory: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(directory, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text(f"data: [{json.dumps(str(text.parent / named))}]\n")
    command = ["evaluate", str(tmp_path / "run"), "--data", str(text), "--limit", "20"]
    assert main(command) == 0
    said = "This model was trained on words.txt, but for the tenth that was held out:"
    assert said in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--json"]) == 0
    assert said in json.loads(capsys.readouterr().out)["notes"][0]
    (tmp_path / "other.txt").write_text(WORDS)
    assert main([*command[:3], str(tmp_path / "other.txt"), *command[4:]]) == 0
    assert "trained on" not in capsys.readouterr().out


def test_what_rounding_costs_an_adapter(
    directory: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = af.load(directory)
    add_adapter(model, LoraConfig(rank=2))
    for each in adapters(model):
        torch.nn.init.normal_(each.b, std=0.1)
    af.save_adapter(model, tmp_path)
    command = [
        "evaluate",
        str(directory),
        "--data",
        str(text),
        "--limit",
        "100",
        "--adapter",
        str(tmp_path),
        "--compare",
    ]
    assert main([*command, "--json"]) == 0
    rows = {row["weights"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    kinds = [f"{kind} and the adapter" for kind in ("int8", "int4")] + [f"merged, then {k}" for k in ("int8", "int4")]
    assert rows.keys() == {"float32", *kinds}
    assert all(0 < rows[kind]["divergence"] < 0.1 for kind in kinds)
    assert rows["merged, then int4"]["bytes_of_weights"] < rows["int4 and the adapter"]["bytes_of_weights"]
    assert main(command) == 0
    out = capsys.readouterr().out
    nearer = rows["merged, then int4"]["divergence"] <= rows["int4 and the adapter"]["divergence"]
    assert f"int4: the adapter costs less {'merged before' if nearer else 'beside'}" in " ".join(out.split())


def test_convert_makes_a_directory_of_integers(
    directory: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(directory), str(tmp_path / "small"), "--type", "int4"]) == 0
    assert "int4" in capsys.readouterr().out
    converted, tokenizer = af.load(tmp_path / "small")
    loaded, _ = af.load(directory, quantize="int4")
    assert tokenizer is not None
    a, b = converted.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert main(["generate", str(tmp_path / "small"), "the", "--max-new-tokens", "2"]) == 0


def test_convert_never_replaces_its_source(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = af.load(directory)
    af.save(model, tmp_path / "run" / "model", tokenizer=tokenizer)
    (tmp_path / "a.gguf").write_bytes(b"any")
    monkeypatch.chdir(tmp_path)
    for source, target, kind in (
        ("run/model", "run/../run/model/", "int4"),
        ("run", "run/model", "int8"),
        ("a.gguf", "./a.gguf", "q8_0"),
    ):
        assert main(["convert", source, target, "--type", kind]) == 2
        assert "would be lost: choose another name" in capsys.readouterr().err
    assert Path("a.gguf").read_bytes() == b"any"
    assert all(torch.equal(a, b) for a, b in zip(af.load("run")[0].parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "--quantize", "int8"], "leave out --quantize"),
        (["--limit", "0"], "--limit is at least 1"),
        (["--context", "65"], "from 2 to 64, not 65"),
    ],
)
def test_what_evaluate_refuses(
    directory: Path, text: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(directory), "--data", str(text), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_convert_refuses_what_makes_no_sense(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(directory), "x.gguf", "--type", "int8"]) == 2
    assert "q8_0" in capsys.readouterr().err
    assert main(["convert", str(directory), "x", "--type", "int8", "--verify"]) == 2
    assert "evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_convert_writes_a_directory_of_integers(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = af.preset("llama-nano", vocab_size=96)
    af.save(af.build(config), tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "small"), "--type", kind]) == 0
    assert kind in capsys.readouterr().out
    small, _ = af.load(tmp_path / "small")
    rounded, _ = af.load(tmp_path / "model", quantize=kind)
    assert all(
        torch.equal(a, b) for a, b in zip(small.state_dict().values(), rounded.state_dict().values(), strict=True)
    )
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "small.gguf"), "--type", kind]) == 2
    assert "integers" in capsys.readouterr().err
    for argv in (["convert", "SMALL", str(tmp_path / "small.gguf")], ["verify", "SMALL"]):
        assert main([part.replace("SMALL", str(tmp_path / "small")) for part in argv]) == 2
        assert "made of" in capsys.readouterr().err
    assert not (tmp_path / "small.gguf").exists()
    assert main(["diff", str(tmp_path / "small"), str(tmp_path / "model")]) == 0
    assert main(["show", str(tmp_path / "small")]) == 0


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[Path, Path]:
    """A classifier, and examples for it."""
    model, tokenizer = vary(*encoder({"kind": "classification", "labels": 2, "label_names": ("bad", "good")}))
    af.save(model, tmp_path / "classifier", tokenizer=tokenizer)
    rows = [f"{WORDS[begin:][:20].split('.')[0].strip()},{('bad', 'good')[begin % 2]}" for begin in range(0, 120, 5)]
    (tmp_path / "dev.csv").write_text("sentence,label\nthe \x1b[31mred\x1b[0m cat,good\n" + "\n".join(rows) + "\n")
    return tmp_path / "classifier", tmp_path / "dev.csv"


def test_a_task_is_evaluated_by_its_columns(
    classifier: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, data = classifier
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluate", str(directory), "--data", str(data), "--json", "--worst", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = af.evaluate(*af.load(directory), str(data))
    assert {name: each["value"] for name, each in found["metrics"].items()} == pytest.approx(scores)
    assert found["metrics"]["accuracy"]["low"] <= scores["accuracy"] <= found["metrics"]["accuracy"]["high"]
    assert found["confusion"]["labels"] == ["bad", "good"]
    assert sum(map(sum, found["confusion"]["matrix"])) == found["examples"] == 25
    assert len(found["worst"]) == 3
    assert main(["evaluate", str(directory), "--data", str(data), "--worst", "25"]) == 0
    out = capsys.readouterr().out
    for shown in ("classify: 25 examples", "95% interval", "mcc", "is, taken for", f"{data}, line "):
        assert shown in out
    assert "\x1b" not in out
    assert main(["evaluate", str(directory), "--data", str(data), "--limit", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 7


def test_columns_are_flags(classifier: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory, data = classifier
    other = data.with_name("other.csv")
    other.write_text(data.read_text().replace("sentence,label", "words,verdict"))
    command = ["evaluate", str(directory), "--data", str(other), "--json"]
    assert main([*command, "--text", "words", "--label", "verdict"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "classify"
    assert main([*command, "--task", "classify"]) == 2
    assert "--text words --label verdict" in capsys.readouterr().err


def test_unknown_columns_are_answered_with_the_flags(
    classifier: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dev.csv").write_text("remark,verdict\na good dog,good\n")
    assert main(["evaluate", str(classifier[0]), "--data", str(tmp_path / "dev.csv")]) == 2
    assert "--task classify --text remark --label verdict" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match=r"task='classify', columns=\{'text': 'remark', 'label': 'verdict'\}\.$"):
        af.evaluate(classifier[0], tmp_path / "dev.csv")


def test_answers_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = decoder()
    af.save(model, tmp_path / "model", tokenizer=tokenizer)
    rows = [{"prompt": f"the {word}: ", "completion": ("yes", "no")[len(word) % 2]} for word in WORDS.split()]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "dev.jsonl")]
    assert main([*command, "--choices", "yes", "no", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "completion"
    assert found["confusion"]["labels"] == ["yes", "no"]
    assert main([*command, "--max-new-tokens", "2", "--limit", "3"]) == 0
    assert "rougeL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a file with --data, or tasks of lm-eval with --suite"),
        (["--data", "dev.csv", "--suite", "piqa"], "--suite brings its own data"),
        (["--data", "dev.csv", "--compare"], "--compare is for texts"),
        (["--data", "dev.csv", "--worst", "-1"], "0 or more"),
        (["--data", "dev.csv", "--task", "tag"], "needs tokens"),
        (["--data", "dev.csv", "--task", "sort"], "--task can't be 'sort'"),
        (["--data", "dev.csv", "--choices", "good"], "at least two answers"),
        (["--data", "dev.csv", "--label", "missing"], "has no column 'missing'"),
    ],
)
def test_what_a_task_refuses(
    classifier: tuple[Path, Path],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(classifier[0].parent)
    assert main(["evaluate", "classifier", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_suite_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    harness = pytest.importorskip("anyformer.evaluation.harness", reason="lm-eval is not installed (extra eval)")
    model, tokenizer = decoder()
    af.save(model, tmp_path / "model", tokenizer=tokenizer)
    asked: list[Any] = []

    def run_suite(model: Any, tokenizer: Any, tasks: list[str], **options: Any) -> Any:
        asked.append((tasks, options["limit"], options["chat_template"]))
        return {"piqa": {"acc,none": 0.5, "acc_stderr,none": 0.1, "samples": 7.0}}

    monkeypatch.setattr(harness, "run_suite", run_suite)
    command = ["evaluate", str(tmp_path / "model"), "--suite", "piqa,hellaswag", "--limit", "7"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["acc,none"] == 0.5
    assert main([*command, "--chat-template"]) == 0
    assert capsys.readouterr().out.split()[-5:] == ["piqa", "acc", "0.5000", "0.1000", "7"]
    assert asked == [(["piqa", "hellaswag"], 7, False), (["piqa", "hellaswag"], 7, True)]


def test_names_of_weights_are_whole_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    quality = Quality(Evaluation(1e4, 1234, 0.1), 1.2345, 12_345_678, 12_345.0, divergence=0.1234)
    _show_text(dict.fromkeys(("bfloat16", "int8", "int4"), quality), Text([], 10, None), None)
    out = capsys.readouterr().out
    assert "\u2026" not in out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["bfloat16", "int8", "int4"]
