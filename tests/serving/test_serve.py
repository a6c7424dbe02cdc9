"""`anyformer serve` begins, says where it is, and ends as it is told."""

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

import anyformer as af
from anyformer.cli.main import main
from anyformer.serving.settings import ServerSettings
from tests.serving.running import command, small_models
from tests.serving.test_adapters import saved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "gpt"
    made, tokenizer = small_models()["gpt"]
    af.save(made, directory, tokenizer=tokenizer)
    return directory


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """One that is added beside the model, and one that replaces some of its weights."""
    return {"low": saved(tmp_path / "low", 2), "all": saved(tmp_path / "all", 3, bias="all")}


@pytest.fixture
def serving(request: pytest.FixtureRequest, model: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    flags = ["--grace", "20"]
    if "adapters" in request.fixturenames:
        given: dict[str, Path] = request.getfixturevalue("adapters")
        flags += ["--adapter", *(f"{name}={place}" for name, place in given.items())]
    with command({"mine": model}, *flags) as started:
        yield started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished(serving: tuple[subprocess.Popen[str], str], number: signal.Signals) -> None:
    process, url = serving
    body = {"model": "mine", "prompt": "the", "max_tokens": 200, "ignore_eos": True, "n": 4}
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=url, timeout=60) as client, httpx.Client(base_url=url) as watching:
        metrics = watching.get("/metrics").text  # connects before there is anything to miss
        thread = threading.Thread(target=lambda: answers.append(client.post("/v1/completions", json=body)))
        thread.start()
        while not re.search(r'texts_(running|waiting)\{model="mine"\} [1-9]', metrics):
            metrics = watching.get("/metrics").text
            assert not answers, "it was over too soon"
        process.send_signal(number)
        thread.join(60)
    assert answers[0].status_code == 200
    assert process.wait(30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_ctrl_c_twice_ends_it_at_once(serving: tuple[subprocess.Popen[str], str]) -> None:
    process, url = serving
    body = {"model": "mine", "prompt": "the", "max_tokens": 10, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body | {"max_tokens": 250, "ignore_eos": True}):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait(15)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_adapters_are_added_or_merged(
    model: Path, adapters: dict[str, Path], serving: tuple[subprocess.Popen[str], str]
) -> None:
    body = {"prompt": "the cat sat", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    texts = set[str]()
    with httpx.Client(base_url=serving[1], timeout=60) as client:
        listed = {each["id"]: each.get("parent") for each in client.get("/v1/models").json()["data"]}
        assert listed == {"mine": None, "low": "mine", "all": "mine"}
        for name in listed:
            adapted, tokenizer = af.load(model, adapter=adapters.get(name, ()))
            assert tokenizer is not None
            answer = client.post("/v1/completions", json=body | {"model": name}).json()["choices"][0]["text"]
            assert [answer] == af.generate(adapted, tokenizer, ["the cat sat"], max_new_tokens=12, stop_at_eos=False)
            texts.add(answer)
    assert len(texts) == 3


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["serve", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_mistakes_are_sentences(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANYFORMER_API_KEY", raising=False)
    assert "--no-auth" in fails(capsys, str(model), "--host", "0.0.0.0")
    assert "Two models have the name gpt" in fails(capsys, str(model), str(model))
    assert "can't be read" in fails(capsys, str(model), "--api-key-file", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in fails(capsys, str(model), "--api-key-file", str(tmp_path / "empty"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Nothing can listen at 127.0.0.1, port {port}" in fails(capsys, str(model), "--port", str(port))


def test_settings_are_keywords(model: Path) -> None:
    with patch("anyformer.serving.serve.serve_models") as served:
        af.serve(model, port=8765, allow_host="box", settings=ServerSettings(slots=3, port=1))
    assert served.call_args.args[1] == ServerSettings(slots=3, port=8765, allow_host=("box",))
    with pytest.raises(af.UserError, match="port: wants a whole number, not 'x'"):
        af.serve(model, port="x")
    with pytest.raises(TypeError, match="did you mean 'port'"):
        af.serve(model, prt=1)
