"""`anyformer generate --file`: a job over many prompts, killed, started again, and tampered with."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.generation.batch_job import BatchJob, fingerprint, read_prompts

TEXT = ["the cat sat on the mat", "a dog and a cat", "Paris is the capital of France."]
PROMPTS = ["the cat", "a dog", "Paris is the", "on the mat a cat", "sat"]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "bpe:300")
    config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size, d_model=32, decoder_layers=2)
    model = af.build(config.replace(special_tokens={"bos": None, "eos": (), "pad": None}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    path = tmp_path_factory.mktemp("gpt")
    af.save(model, path, tokenizer=tokenizer)
    return path


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _generate(gpt: Path, file: Path, out: Path, *flags: str) -> int:
    return main(["generate", str(gpt), "--file", str(file), "--out", str(out), "--max-new-tokens", "6", *flags])


def _write(path: Path, prompts: Sequence[str]) -> Path:
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path


def test_each_prompt_gets_its_answer(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _write(tmp_path / "prompts.txt", PROMPTS)
    records = tmp_path / "prompts.jsonl"
    records.write_text("".join(json.dumps({"q": {"text": prompt}}) + "\n" for prompt in PROMPTS))
    model, tokenizer = af.load(gpt)
    texts = af.generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    expected = [
        {"index": index, "prompt": prompt, "text": text}
        for index, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True))
    ]
    assert _generate(gpt, lines, tmp_path / "a.jsonl", "--batch-size", "2") == 0
    assert _generate(gpt, records, tmp_path / "deep" / "b.jsonl", "--field", "q.text") == 0
    assert _read(tmp_path / "a.jsonl") == _read(tmp_path / "deep" / "b.jsonl") == expected
    assert "a.jsonl: 5\n" in capsys.readouterr().out
    before = (tmp_path / "a.jsonl").read_bytes()
    assert _generate(gpt, lines, tmp_path / "a.jsonl", "--batch-size", "2") == 0
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert "5 of them were there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch-size", "2"],
        ["--temperature", "1", "--seed", "3", "--batch-size", "3"],
        ["--stop", "b", "--frequency-penalty", "0.5", "--batch-size", "2"],
    ],
)
def test_wherever_the_file_was_cut_the_answers_are_the_same(gpt: Path, tmp_path: Path, flags: list[str]) -> None:
    file, out = _write(tmp_path / "prompts.txt", PROMPTS), tmp_path / "answers.jsonl"
    assert _generate(gpt, file, out, *flags) == 0
    whole = out.read_bytes()
    ends = [0, *(place + 1 for place, byte in enumerate(whole) if byte == ord("\n"))]
    for size in sorted({*ends, *(end - 1 for end in ends[1:]), 1, len(whole) // 2}):
        out.write_bytes(whole[:size])
        assert _generate(gpt, file, out, *flags) == 0
        assert out.read_bytes() == whole


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_answer_is_lost_or_doubled(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.text(max_size=8), min_size=1, max_size=12))
    size = data.draw(st.integers(1, 5))
    out = tmp_path_factory.mktemp("job") / "answers.jsonl"
    job = BatchJob(out, prompts, {"batch_size": size}, "model")
    calls = 0

    def write(first: int, texts: Sequence[str]) -> list[str]:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return [f"{first + place}\n{text}\u2028" for place, text in enumerate(texts)]

    for _ in range(4):
        calls = data.draw(st.integers(0, 3))
        with contextlib.suppress(KeyboardInterrupt):
            job.run(write)
        if out.exists():
            held = out.read_bytes()
            out.write_bytes(held[: len(held) - data.draw(st.integers(0, min(5, len(held))))])
    calls = 100
    job.run(write)
    lines = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    assert lines == [
        {"index": index, "prompt": prompt, "text": f"{index}\n{prompt}\u2028"} for index, prompt in enumerate(prompts)
    ]


_SLOW = """
import sys, time
from pathlib import Path
from anyformer.generation.batch_job import BatchJob
job = BatchJob(Path(sys.argv[1]), [str(n) for n in range(200)], {"batch_size": 7}, "model")
def write(first, texts):
    time.sleep(0.002)
    return [text * 3000 for text in texts]
job.run(write, lambda count: print("begun", count, flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    chance = random.Random(0)
    counts = [0]
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", _SLOW, str(out)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        counts.append(int(process.stdout.readline().split()[1]))
        time.sleep(chance.random() * 0.03)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    subprocess.run([sys.executable, "-c", _SLOW, str(out)], check=True, capture_output=True)
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert [line["text"] for line in _read(out)] == [str(n) * 3000 for n in range(200)]


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["generate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("anyformer: ")
    assert error.count("\n") == 1
    return error


def test_another_job_is_refused(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = _write(tmp_path / "prompts.txt", PROMPTS), tmp_path / "answers.jsonl"
    begun = [str(gpt), "--file", str(file), "--out", str(out), "--max-new-tokens", "6"]
    assert main(["generate", *begun]) == 0
    whole = out.read_bytes()
    told = _refused(capsys, *begun, "--temperature", "0.5", "--batch-size", "3")
    assert "batch_size was 8 and is 3; temperature was 0.0 and is 0.5." in told
    _write(file, [*PROMPTS[:3], "a mat", PROMPTS[4], "the dog"])
    told = _refused(capsys, *begun)
    assert "there were 5 prompts and are 6; prompts have changed, the first of them number 4." in told
    _write(file, PROMPTS)
    model, tokenizer = af.load(gpt)
    with torch.no_grad():
        model.token_embedding.table.weight += 0.5
    af.save(model, tmp_path / "other", tokenizer=tokenizer)
    assert "the model is another" in _refused(capsys, str(tmp_path / "other"), *begun[1:])
    assert fingerprint(*af.load(gpt)) == fingerprint(*af.load(gpt)) != fingerprint(model, tokenizer)
    assert out.read_bytes() == whole
    out.write_bytes(whole.replace(b"a dog", b"a cow"))
    assert "line 2, is not the answer" in _refused(capsys, *begun)
    out.write_bytes(whole.replace(b'"index": 2', b'"index": 3'))
    assert "line 3, is no answer" in _refused(capsys, *begun)
    out.write_bytes(whole)
    job = tmp_path / "answers.jsonl.job"
    job.write_text("{")
    assert "missing or damaged" in _refused(capsys, *begun)
    job.unlink()
    out.write_text("my only diary")
    assert "holds something else" in _refused(capsys, *begun)
    assert out.read_text() == "my only diary"


def test_answers_go_to_files_only(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, pipe = _write(tmp_path / "prompts.txt", PROMPTS), tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is no regular file" in _refused(capsys, str(gpt), "--file", str(file), "--out", str(pipe))
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "pipe"}


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
@pytest.mark.timeout(60)
def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    job = BatchJob(tmp_path / "a.jsonl", ["a", "b"], {"batch_size": 1}, "model")
    job.run(lambda first, texts: texts)
    answers, description = _read(job.path), (tmp_path / "a.jsonl.job").read_bytes()
    victim = tmp_path / "victim"
    for name in ("a.jsonl", ".a.jsonl.lock"):
        for content in (None, job.path.read_bytes()[:20]):
            victim.unlink(missing_ok=True)
            if content is not None:
                victim.write_bytes(content)
            (tmp_path / name).rename(tmp_path / "kept")
            (tmp_path / name).symlink_to(victim)
            with pytest.raises(UserError, match=rf"{name} is a symbolic link, by which something elsewhere"):
                job.run(lambda first, texts: texts)
            assert (victim.read_bytes() if victim.exists() else None) == content
            (tmp_path / "kept").replace(tmp_path / name)
    # A description is read from its folder alone, and written in the place of a link.
    victim.write_bytes(description)
    (tmp_path / "a.jsonl.job").unlink()
    outside = tmp_path.parent / f"{tmp_path.name}-description"
    outside.write_bytes(description)
    (tmp_path / "a.jsonl.job").symlink_to(outside)
    with pytest.raises(UserError, match="missing or damaged"):
        job.run(lambda first, texts: texts)
    job.path.write_bytes(b"")
    job.run(lambda first, texts: texts)
    assert _read(job.path) == answers
    assert not (tmp_path / "a.jsonl.job").is_symlink()
    assert outside.read_bytes() == description
    for name in ("a.jsonl.job", ".a.jsonl.lock"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=r"missing or damaged|is not a file but a named pipe"):
            job.run(lambda first, texts: texts)


@pytest.mark.parametrize("settings", ["[1]", '"x"', "3", "[[1, 2]]"])
def test_a_description_of_another_type_is_damaged(tmp_path: Path, settings: str) -> None:
    job = BatchJob(tmp_path / "a.jsonl", ["a"], {"batch_size": 1}, "model")
    job.run(lambda first, texts: texts)
    fields = {"count": [1], "prompts": {}, "model": None}
    (tmp_path / "a.jsonl.job").write_text(f'{json.dumps(fields)[:-1]}, "settings": {settings}}}')
    with pytest.raises(UserError, match=r"missing or damaged|was begun otherwise"):
        job.run(lambda first, texts: texts)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    def write(first: int, texts: Sequence[str]) -> Sequence[str]:
        with pytest.raises(UserError, match="another process"):
            BatchJob(tmp_path / "a.jsonl", ["a"], {"batch_size": 1}, "model").run(write)
        return texts

    BatchJob(tmp_path / "a.jsonl", ["a"], {"batch_size": 1}, "model").run(write)
    assert len(_read(tmp_path / "a.jsonl")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "the cat\n\na dog\n", "p.txt, line 2, has an empty prompt"),
        ("p.txt", "", "There is no prompt in"),
        ("p.txt", "the cat\n" + "the cat " * 100, "p.txt, line 2, has"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n', "p.jsonl, line 2, has an empty prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "p.jsonl, line 2, is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "a"}\n', "p.jsonl, line 2, has no field 'prompt'"),
        ("p.jsonl", '{"prompt": 3}\n', "p.jsonl, line 1, has no text in its field"),
        ("p.csv", "prompt,b\nx\n", "p.csv, line 2, has 1 field, and"),
    ],
)
def test_bad_prompts_are_named(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    out = tmp_path / "answers.jsonl"
    assert message in _refused(capsys, str(gpt), "--file", str(file), "--out", str(out))
    assert not out.exists()


def test_flags_that_do_not_go_together(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(_write(tmp_path / "p.txt", PROMPTS)), str(tmp_path / "a.jsonl")
    assert "belong together" in _refused(capsys, str(gpt), "--file", file)
    for flag in ("--out", "-o", "--output"):  # the latter are what other commands call it
        assert "belong together" in _refused(capsys, str(gpt), "x", flag, out)
    assert "not both" in _refused(capsys, str(gpt), "x", "--file", file, "--out", out)
    assert "single prompt" in _refused(capsys, str(gpt), "--file", file, "--out", out, "--n-best", "2", "--beams", "2")
    assert "--batch-size" in _refused(capsys, str(gpt), "--file", file, "--out", out, "--batch-size", "0")
    assert "no file of prompts" in _refused(capsys, str(gpt), "--file", f"{file}x", "--out", out)
    assert "can't be written" in _refused(capsys, str(gpt), "--file", file, "--out", f"{file}/a.jsonl")


def test_prompts_of_any_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt\n"a\nb"\nc\n')
    assert [(prompt.text, prompt.location) for prompt in read_prompts(tmp_path / "p.csv")] == [
        ("a\nb", f"{tmp_path / 'p.csv'}, line 2"),
        ("c", f"{tmp_path / 'p.csv'}, line 4"),
    ]
    (tmp_path / "prompts").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert [prompt.text for prompt in read_prompts(tmp_path / "prompts")] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "prompts"), [(b"a\nb\n", ["a", "b"]), (b'{"prompt": "a"}\n{"prompt": "b"}', ["a", "b"])]
)
def test_prompts_on_standard_input(
    content: bytes, prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    stream = io.BytesIO(content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    found = read_prompts(Path("-"))
    assert [each.text for each in found] == prompts
    assert found[1].location == "standard input, line 2"
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with pytest.raises(UserError, match="--file - reads standard input, and that is a terminal"):
        read_prompts(Path("-"))


def test_stop_and_penalties(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(gpt), "a", "--max-new-tokens", "6", "--stop", "b", "--min-p", "0.1"]) == 0
    assert "b" not in capsys.readouterr().out[1:]
    assert main(["generate", str(gpt), "a", "--beams", "2", "--frequency-penalty", "0.5"]) == 2
    assert "without beams" in capsys.readouterr().err
