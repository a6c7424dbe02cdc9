"""`anyformer chat`: a conversation as a user has it, at a terminal and through a pipe."""

import io
import json
import os
import pty
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forked import Forks

import anyformer as af
from anyformer.cli.chat import ChatOptions, Terminal
from anyformer.cli.generate import generation_options
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.generation import Conversation, GenerationConfig
from anyformer.generation.cached_decoder import PrefixCache
from anyformer.generation.prompt import Prompt
from anyformer.generation.stop_strings import cut_at_stop
from anyformer.model import Origin

TEXT = ["the cat sat on the mat", "a dog and a cat", "Paris is the capital of France.", "User: a\nAssistant: b\n"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
GREEDY = GenerationConfig(max_new_tokens=8)


def _model(length: int = 64, **changes: Any) -> tuple[af.model.Transformer, af.Tokenizer]:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "bpe:300")
    config = af.preset("llama-nano", vocab_size=tokenizer.vocab_size, d_model=32, decoder_layers=2, max_length=length)
    model = af.build(
        config.replace(special_tokens={"bos": None, "eos": (tokenizer.eos,), "pad": None}, **changes)
    ).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model, tokenizer


_DRAWN, _ = _model()
_UNTUNED = Conversation(*_model())


def _tuned(length: int = 64) -> tuple[af.model.Transformer, af.Tokenizer]:
    model, tokenizer = _model(length)
    return model, af.Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    model, tokenizer = _model(256)
    af.save(model, path, tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned")
    model, tokenizer = _tuned(256)
    af.save(model, path, tokenizer=tokenizer)
    return path


def _ask(conversation: Conversation, question: str, new: int = 8) -> str:
    return "".join(conversation.answer(question, temperature=0.0, max_new_tokens=new))


def _prefill(cache: PrefixCache, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return cache.prefill(Prompt(ids=torch.tensor([ids]), max_new_tokens=1))


def _count_read(model: af.model.Transformer) -> list[int]:
    read: list[int] = []
    model._forward_pre_hooks.clear()
    model.register_forward_pre_hook(lambda module, given: read.append(given[0].shape[1]))
    return read


def test_an_answer_is_what_the_template_and_greedy_decoding_give() -> None:
    model, tokenizer = _tuned(256)
    conversation = Conversation(model, tokenizer, system="be kind")
    messages = [{"role": "system", "content": "be kind"}]
    for question in ("the cat", "a dog", "Paris?"):
        messages.append({"role": "user", "content": question})
        ids = torch.tensor([tokenizer.encode(tokenizer.chat(messages), special=False)])
        expected = tokenizer.decode(af.generate_ids(model, ids, max_new_tokens=8)[0].tolist())
        assert _ask(conversation, question) == expected
        messages.append({"role": "assistant", "content": expected})
        assert conversation.messages == messages
    conversation.reset()
    assert conversation.messages == messages[:1]
    assert _ask(conversation, "the cat") == messages[2]["content"]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 200), min_size=1, max_size=30)), max_size=6))
def test_what_is_known_is_not_read_again_and_changes_nothing(edits: list[tuple[int, list[int]]]) -> None:
    model = _DRAWN
    read, cache = _count_read(model), PrefixCache(model)
    before: list[int] = []
    for keep, new in edits:
        ids = [*before[:keep], *new]
        read.clear()
        scores = _prefill(cache, ids)
        common = next(
            (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
        )
        assert read == [len(ids) - min(common, len(ids) - 1)]
        with torch.inference_mode():
            whole = model(torch.tensor([ids])).logits[:, -1]
        torch.testing.assert_close(scores, whole, rtol=1e-4, atol=1e-4)
        before = ids


def test_the_memory_grows_and_an_interrupted_reading_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.generation.cached_decoder._SMALLEST_PREFIX_CACHE", 4)
    model, _ = _model()
    read, cache = _count_read(model), PrefixCache(model)
    ids = torch.randint(200, (40,)).tolist()

    def interrupt(module: object, given: object) -> None:
        raise KeyboardInterrupt

    for length in (3, 5, 6, 30, 40):
        handle = model.decoder.blocks[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            _prefill(cache, ids[:length])
        handle.remove()
        with torch.inference_mode():
            whole = model(torch.tensor([ids[:length]])).logits[:, -1]
        torch.testing.assert_close(_prefill(cache, ids[:length]), whole, rtol=1e-4, atol=1e-4)
    assert read[2::3] == [3, 2, 1, 24, 10]


def test_the_oldest_turns_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = _tuned(64)
    conversation = Conversation(model, tokenizer, system="cat")
    seen: list[str] = []
    encode = tokenizer.encode

    def watched(text: str, special: bool = True) -> list[int]:
        seen.append(text)
        return encode(text, special)

    monkeypatch.setattr(tokenizer, "encode", watched)
    for turn in range(12):
        _ask(conversation, f"a dog {turn}", 8)
        assert len(encode(seen[-1], special=False)) <= 64 - 8
        assert seen[-1].startswith("<system>cat")
        assert f"a dog {turn}<|endoftext|><assistant>" in seen[-1]
    assert conversation.forgotten > 0
    assert conversation.forgotten % 2 == 0
    assert len(conversation.messages) > conversation.forgotten
    with pytest.raises(UserError, match="question alone has"):
        conversation.answer("cat " * 100, max_new_tokens=8)
    with pytest.raises(UserError, match="at least 1"):
        conversation.answer("cat", max_new_tokens=0)


def test_a_stopped_answer_is_kept_and_one_without_words_is_not() -> None:
    conversation = Conversation(*_tuned(256), temperature=0.0, max_new_tokens=50)
    pieces = conversation.answer("the cat")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert [message["content"] for message in conversation.messages] == ["the cat", said]
    assert not conversation.unfinished
    conversation.answer("a dog").close()
    assert len(conversation.messages) == 2


def test_models_that_cannot_chat() -> None:
    _, tokenizer = _model()
    small = {"vocab_size": 300, "encoder_layers": 1, "decoder_layers": 1}
    with pytest.raises(UserError, match="encoder-decoder"):
        Conversation(af.build(af.preset("transformer-base", **small)), tokenizer)
    with pytest.raises(UserError, match="encoder reads"):
        Conversation(af.build(af.preset("bert-tiny", vocab_size=300)), tokenizer)
    model, _ = _model()
    with pytest.raises(UserError, match="without a tokenizer"):
        Conversation(model, None)
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}?"
    strict_tokenizer = af.Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": strict})
    with pytest.raises(UserError, match="no system"):
        Conversation(model, strict_tokenizer, system="x")
    conversation = Conversation(model, strict_tokenizer)
    with pytest.raises(UserError, match="no system"):
        conversation.system = "x"
    assert conversation.system is None
    silent = af.Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": "{% if false %}?{% endif %}"})
    with pytest.raises(UserError, match="makes nothing of these messages"):
        _ask(Conversation(model, silent), "the cat")
    small_model, _ = _model(vocab_size=tokenizer.vocab_size - 1)
    tokens = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    latest = af.Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": tokens[-1]})
    with pytest.raises(UserError, match="outside the model's vocabulary"):
        _ask(Conversation(small_model, latest), "the cat")


@given(st.text("ab\nUser:", max_size=40), st.data())
def test_a_stop_string_is_never_shown_however_it_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join(cut_at_stop(pieces, "\nUser:")) == text.partition("\nUser:")[0]
    shown = "".join(_UNTUNED._answer({"role": "user", "content": "?"}, 0, iter(pieces)))
    assert shown == text.partition("\nUser:")[0].lstrip()


@given(st.text("ab", min_size=4, max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.data())
def test_the_stop_string_that_is_whole_first_ends_the_text(text: str, stops: list[str], data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(text) - 4))
    stops += [text[begin : begin + 4], text[begin + 1 : begin + 3]]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ends = ((end, len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop))
    end, size = min(ends, key=lambda found: (found[0], -found[1]), default=(len(text), 0))
    assert "".join(cut_at_stop(pieces, stops)) == "".join(cut_at_stop([text], stops)) == text[: end - size]


def test_sampling_is_the_users_then_the_models_then_ours() -> None:
    model, _ = _model()

    def config(**flags: Any) -> GenerationConfig:
        return GenerationConfig.for_chat(model, **generation_options(ChatOptions(model="x", **flags)))

    assert config() == GenerationConfig(max_new_tokens=1024, temperature=0.7)
    model.origin = Origin(generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0})
    assert config() == GenerationConfig(max_new_tokens=1024, temperature=0.6, top_p=0.9)
    asked = GenerationConfig(max_new_tokens=1024, temperature=0.0, top_p=0.9, top_k=5)
    assert config(temperature=0.0, top_k=5) == asked
    model.origin = Origin(generation={"do_sample": False})
    assert config() == GenerationConfig(max_new_tokens=1024, temperature=0.0)


def _chat(monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return main(["chat", *arguments])


def test_a_pipe_gets_answers_alone(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chat.json"
    lines = ["the cat", "", "/system be brief", "a dog", f"/save {out}", "/system", f"/save {out}", "/help", "/reset"]
    lines += ["the cat", "/quit", "unasked", ""]
    flags = ["--temperature", "0", "--max-new-tokens", "6", "--system", "be kind"]
    assert _chat(monkeypatch, "\n".join(lines), str(tuned), *flags) == 0
    captured = capsys.readouterr()
    saved = json.loads(out.read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert saved[0]["content"] == "be brief"
    assert captured.out.startswith(f"{saved[2]['content']}\n{saved[4]['content']}\n")
    assert "\033" not in captured.out + captured.err
    assert "template" not in captured.err
    assert "be brief" in captured.err
    assert "/reset" in captured.err
    assert "unasked" not in captured.out + captured.err
    assert _chat(monkeypatch, f"/save {out}\n", str(tuned)) == 2
    assert "exists already" in capsys.readouterr().err
    assert _chat(monkeypatch, "/rset\n", str(tuned)) == 2
    assert "did you mean '/reset'" in capsys.readouterr().err
    assert _chat(monkeypatch, "", str(tuned), "--max-new-tokens", "0") == 2
    assert not list(tmp_path.glob(".*"))


def test_integers_are_greeted_with_all_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = _tuned()
    count = sum(weight.numel() for weight in model.parameters()) / 1e6
    terminal = Terminal(Conversation(af.quantize(model, "int4"), tokenizer, config=GREEDY))
    terminal._is_interactive = True
    terminal.greet("here", model)
    assert count > 0.05
    assert f"{count:.1f}M parameters" in capsys.readouterr().err


def test_seeds_repeat_a_chat(tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for seed in ("1", "1", "2"):
        flags = ["--temperature", "1.5", "--max-new-tokens", "12", "--seed", seed]
        assert _chat(monkeypatch, "the cat\na dog\n", str(tuned), *flags) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_base_models_are_told_and_shown_plain_lines(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _chat(monkeypatch, "the cat\n", str(base), "--temperature", "0", "--max-new-tokens", "6") == 0
    captured = capsys.readouterr()
    assert "no chat template" in captured.err
    assert "base model" in captured.err
    assert "as long as it may be" in captured.err
    model, tokenizer = af.load(base)
    expected = af.generate(model, tokenizer, "be kind\nUser: the cat\nAssistant:", max_new_tokens=6)[0]
    conversation = Conversation(model, tokenizer, system="be kind")
    assert _ask(conversation, "the cat", 6) == expected.lstrip()


def test_forgetting_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat sat on the mat\n" * 6))
    assert Terminal(Conversation(*_tuned(64), config=GREEDY)).talk() == 0
    assert "the context is full: the oldest" in capsys.readouterr().err


def _expect(terminal: int, text: str, seen: bytearray) -> None:
    end = time.monotonic() + 100
    while text.encode() not in seen and time.monotonic() < end:
        seen += os.read(terminal, 4096)
    assert text.encode() in seen, bytes(seen)
    del seen[: seen.index(text.encode()) + len(text)]


_ENDLESS = """
import sys, time
from anyformer.cli.main import main
from anyformer.generation import Conversation
def answer(self, question):
    try:
        yield "slow\\x1b[2J words"
        time.sleep(200)
    finally:
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": "slow"}]
Conversation.answer = answer
sys.exit(main(["chat", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_control_c_stops_the_answer_and_then_the_program(tuned: Path, tmp_path: Path, programs: Forks) -> None:
    ours, theirs = pty.openpty()
    terminal = {"TERM": "xterm", "INPUTRC": os.devnull}
    process = programs.start(_ENDLESS, str(tuned), environment=terminal, streams=[theirs] * 3, session=True)
    os.close(theirs)
    seen = bytearray()
    try:
        _expect(ours, "Ctrl-D leaves", seen)
        _expect(ours, ">", seen)
        os.write(ours, b"the cat\n")
        # The escape that would clear the screen is taken out of what the model says.
        _expect(ours, "slow[2J words", seen)
        process.send_signal(signal.SIGINT)
        _expect(ours, "(stopped)", seen)
        os.write(ours, f"/save {tmp_path / 'chat.json'}\n".encode())
        _expect(ours, "2 messages", seen)
        os.write(ours, b"/sav\n")
        _expect(ours, "no command", seen)
        _expect(ours, ">", seen)
        # The line editor shows its prompt a moment before it listens, and loses what comes in between.
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _expect(ours, "Once more", seen)
        _expect(ours, ">", seen)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
