"""The command line as a user calls it: what the commands print and how they end."""

import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.cli.main import _ELSEWHERE, COMMANDS, main
from anyformer.errors import UserError
from anyformer.verify import _model_class

TEXT = ["the cat sat on the mat", "a dog and a cat", "Paris is the capital of France."]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "bpe:300")
    config = af.preset("gpt2-nano", vocab_size=tokenizer.vocab_size, d_model=32, decoder_layers=2)
    model = af.build(config.replace(special_tokens={"bos": None, "eos": (), "pad": None}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    path = tmp_path_factory.mktemp("run") / "model"
    af.save(model, path, tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "wordpiece:120", special="masked")
    config = af.preset("bert-tiny", vocab_size=tokenizer.vocab_size, **{"embedding.padding": tokenizer.pad})
    path = tmp_path_factory.mktemp("bert")
    af.save(af.build(config.replace(special_tokens={"pad": tokenizer.pad})), path, tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train(TEXT, "unigram:90", special="seq2seq")
    tokens = {"eos": (tokenizer.eos,), "pad": tokenizer.pad, "decoder_start": tokenizer.pad}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    config = af.preset("t5-small", vocab_size=tokenizer.vocab_size, d_model=32, special_tokens=tokens, **layers)
    path = tmp_path_factory.mktemp("t5")
    af.save(af.build(config.replace(attention={"heads": 2})), path, tokenizer=tokenizer)
    return path


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence of a command that ends with status 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("anyformer: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("flags", [["--device", "nonsense"], ["--device", "cuda:99"], ["--seed", str(2**63)]])
def test_devices_and_seeds_that_are_not_there(flags: list[str], gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = _fails(capsys, "generate", str(gpt), "the cat", "--temperature", "1", *flags)
    assert flags[0].removeprefix("--") in sentence
    assert flags[1] in sentence


@pytest.mark.parametrize("command", ["evaluate", "embed", "fill"])
def test_a_device_that_is_not_there(command: str, gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(gpt / "config.json")] if command == "evaluate" else ["the cat"]
    assert "no device 'nonsense'" in _fails(capsys, command, str(gpt), *given, "--device", "nonsense")


def test_help_is_quick_and_needs_no_torch() -> None:
    start = time.perf_counter()
    code = "import sys; from anyformer.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert time.perf_counter() - start < 0.5


def test_importing_the_package_imports_no_other() -> None:
    code = "import sys; before = set(sys.modules); import anyformer; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert packages <= {"anyformer", *sys.stdlib_module_names}


_SLOW_TO_IMPORT = {"huggingface_hub", "jinja2", "pyarrow", "rich", "sympy", "transformers"}


def test_generating_imports_only_what_it_needs(gpt: Path) -> None:
    code = f"""
import sys
from anyformer.cli.main import main
main(["generate", {str(gpt)!r}, "the cat", "--max-new-tokens", "1", "--quantize", "int4"])
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(done.stdout.splitlines()[-1].split())
    assert "anyformer.generation.decode" in names
    assert not _SLOW_TO_IMPORT & {name.partition(".")[0] for name in names}
    assert not {"torch._dynamo", "torch._inductor", "anyformer.training", "anyformer.finetuning"} & names


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_without_torch(command: str) -> None:
    code = f"""
import sys
from anyformer.cli.main import main
try:
    main([{command!r}, "--help"])
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"anyformer {command}" in done.stdout


def test_no_arguments_and_wrong_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert main(["--version"]) == 0
    assert af.__version__ in capsys.readouterr().out
    assert "did you mean 'train'" in _fails(capsys, "trian")


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "gpt2"]) == 0
    out = capsys.readouterr().out
    for expected in ("124,439,808", "decoder attention", "284,812,800", "36,864 bytes per token", "gelu_tanh"):
        assert expected in out
    assert main(["show", "gpt2", "--json", "--context", "10", "--model.decoder-layers", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["decoder_layers"] == 2
    assert told["parameters"] == sum(part["parameters"] for part in told["parts"]) == 53_561_088
    assert told["context"] == 10


def test_show_directory(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (gpt, gpt.parent):
        assert main(["show", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["config"]["d_model"] == 32


def test_diff(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "gpt2", "llama"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("norm.kind")] == [
        ["norm.kind", "layer", "rms"]
    ]
    assert "norm.placement" not in out
    assert main(["diff", "gpt2", "gpt2"]) == 0
    assert "the same architecture" in capsys.readouterr().out


def test_vs_between_two_models(capsys: pytest.CaptureFixture[str]) -> None:
    def out(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    for command in (["diff"], ["diagram"], ["eject", "--diff"]):
        assert out(*command, "gpt2", "vs", "llama") == out(*command, "gpt2", "llama")
    assert out("diff", "gpt2 vs llama") == out("diff", "gpt2", "llama")
    assert "There is no preset 'vs'" in _fails(capsys, "diff", "gpt2", "vs")
    assert "'llama' is one argument too many" in _fails(capsys, "diff", "gpt2", "and", "llama")
    for words in (["gpt2", "vs", "llama"], ["gpt2 vs llama"]):
        assert f"there is no command {words[0]!r} (`anyformer compare A B` trains" in _fails(capsys, *words)


def test_names_of_commands_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for theirs, ours in {"quantize": "convert", "eval": "evaluate", "inference": "generate", "sft": "finetune"}.items():
        assert f"there is no command {theirs!r} (that is {ours!r} here)" in _fails(capsys, theirs, "model")
    assert _ELSEWHERE.keys() <= COMMANDS.keys()
    theirs = [name for names in _ELSEWHERE.values() for name in names.split()]
    assert len(theirs) == len(set(theirs) - COMMANDS.keys())
    for command, ours in {"train": "runs", "plan": "runs", "explain": "output"}.items():
        assert f"--out (that is '--{ours}' here)" in _fails(capsys, command, "gpt2", "--out", "x")


def test_looking_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'gpt2'" in _fails(capsys, "show", "gtp2")
    assert "usage: anyformer diff A B" in _fails(capsys, "diff", "gpt2")
    assert "has no config.json" in _fails(capsys, "diff", "gpt2", str(tmp_path))
    assert "--context is a number of tokens" in _fails(capsys, "show", "gpt2", "--context", "0")
    assert "did you mean '--model.decoder-layers'" in _fails(capsys, "show", "gpt2", "--model.decoder-layer", "3")


def test_generate(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = af.load(gpt)
    expected = af.generate(model, tokenizer, "the cat", max_new_tokens=8)[0]
    for path in (gpt, gpt.parent):
        assert main(["generate", str(path), "the cat", "--max-new-tokens", "8"]) == 0
        assert capsys.readouterr().out == f"the cat{expected}\n"
    drawn = []
    for _ in range(2):
        arguments = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.99", "--seed", "3", "--max-new-tokens", "8"]
        assert main(["generate", str(gpt), "a dog", *arguments]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("flags", [[], ["--logprobs", "0"], ["--samples=2", "--temperature=1", "--logit-bias=0:1000"]])
def test_generate_says_why_there_is_no_text(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    model, tokenizer = af.load(gpt)
    assert tokenizer is not None
    silent = af.build(model.config.replace(special_tokens={"eos": (0,)}))
    for weight in silent.parameters():
        torch.nn.init.zeros_(weight)  # so the first token is the likeliest
    af.save(silent, tmp_path / "plain", tokenizer=tokenizer)
    chat = af.Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": "{{ messages[0].content }}"})
    af.save(silent, tmp_path / "a chat", tokenizer=chat)

    assert main(["generate", str(tmp_path / "plain"), "the cat", *flags]) == 0
    assert capsys.readouterr().err == "The model ended the text at once.\n"
    assert main(["generate", str(tmp_path / "a chat"), "the cat", *flags]) == 0
    shown = capsys.readouterr()
    assert "the cat\n" in shown.out
    assert "It has a chat template" in shown.err
    assert shlex.split(shown.err)[-3:] == ["anyformer", "chat", str(tmp_path / "a chat")]
    assert main(["generate", str(tmp_path / "a chat"), "the cat", "--logit-bias=0:-1000"]) == 0
    assert not capsys.readouterr().err
    (space,) = tokenizer.encode("\n", special=False)  # a text of spaces is a text
    assert main(["generate", str(tmp_path / "plain"), "a", f"--logit-bias={space}:9", "--max-new-tokens=3"]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--logprobs=1"], ["--beams=2"], ["--samples=2", "--temperature=1"]])
def test_a_text_without_a_prompt_begins_behind_the_end_of_another(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    model, tokenizer = af.load(gpt)
    assert tokenizer is not None
    model.config = model.config.replace(special_tokens={"eos": (tokenizer.eos,)})
    af.save(model, tmp_path / "trained", tokenizer=tokenizer)
    assert main(["generate", str(tmp_path / "trained"), "--max-new-tokens=6", *flags]) == 0
    if not flags:
        expected = af.generate(model, tokenizer, [[tokenizer.eos or 0]], max_new_tokens=6)[0]
        assert capsys.readouterr().out == f"{expected}\n"


def test_the_prompt_may_be_standard_input(
    gpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = list[str]()
    for prompt in ("the\ncat", "-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the\ncat\n"))
        assert main(["generate", str(gpt), prompt, "--max-new-tokens=6"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["generate", str(gpt), "-"]) == 2
    assert "pipe a text" in capsys.readouterr().err


def test_generate_shows_samples_and_probabilities(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = af.load(gpt)
    command, short = ["generate", str(gpt), "the cat"], ["--max-new-tokens", "6"]
    plain = af.generate(model, tokenizer, "the cat", max_new_tokens=6)[0]
    for draft in ("prompt", str(gpt)):
        assert main([*command, *short, "--draft", draft]) == 0
        assert capsys.readouterr().out == f"the cat{plain}\n"

    drawn = af.generate_samples(model, tokenizer, "the cat", samples=3, max_new_tokens=6, seed=1)[0]
    assert main([*command, *short, "--samples", "3", "--temperature", "1", "--seed", "1"]) == 0
    assert capsys.readouterr().out == "".join(f"[{number}] the cat{text}\n" for number, text in enumerate(drawn, 1))
    assert len(set(drawn)) > 1

    first = int(af.generate_ids(model, torch.tensor([tokenizer.encode("the cat", special=False)]), max_new_tokens=1))
    assert main([*command, *short, "--logit-bias", f"{first}:-1000"]) == 0
    assert capsys.readouterr().out != f"the cat{plain}\n"

    assert main([*command, *short, "--logprobs", "2"]) == 0
    shown = capsys.readouterr().out
    prompt = torch.tensor([tokenizer.encode("the cat", special=False)])
    new = af.generate_ids(model, prompt, max_new_tokens=6)
    with torch.no_grad():
        log_p = model(torch.cat((prompt, new), dim=1)).logits[0, -7:-1].log_softmax(-1)
    logprob = float(log_p.gather(1, new.T).sum())
    assert shown.startswith(f"the cat{plain}\n")
    assert f"log-probability {logprob:.3f} nats, 6 tokens" in shown
    assert shown.count("%") == 3 * 6

    assert "TOKEN:BIAS" in _fails(capsys, *command, "--logit-bias", "a:1")
    assert "names token 99999" in _fails(capsys, *command, "--logit-bias", "99999:1")
    assert "without beams" in _fails(capsys, *command, "--draft", "prompt", "--beams", "2")
    assert "add --temperature" in _fails(capsys, *command, "--samples", "2")
    both = ["--samples", "2", "--logprobs", "1", "--temperature", "1"]
    assert "leave out --samples" in _fails(capsys, *command, *both)
    assert "at least 1, not 0" in _fails(capsys, *command, "--samples", "0")


def test_without_a_number_generate_fills_what_room_there_is(gpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = af.load(gpt)
    assert tokenizer is not None
    room = 64 - len(tokenizer.encode("the cat"))
    expected = af.generate(model, tokenizer, "the cat", max_new_tokens=room)[0]
    assert main(["generate", str(gpt), "the cat"]) == 0
    assert capsys.readouterr().out == f"the cat{expected}\n"


def test_generate_from_a_source(t5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = af.load(t5)
    expected = af.generate(model, tokenizer, "a dog and a cat", max_new_tokens=5)[0]
    assert main(["generate", str(t5), "a dog and a cat", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_embed(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", str(bert), "a cat", "a dog", "--json"]) == 0
    vectors = torch.tensor([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    model, tokenizer = af.load(bert)
    torch.testing.assert_close(vectors, af.embed(model, tokenizer, ["a cat", "a dog"]))
    assert main(["embed", str(bert), "a cat", "a cat"]) == 0
    assert capsys.readouterr().out.count("1.000") == 4


def test_fill(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill", str(bert), "the [MASK] sat on the [MASK]", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("mask")] == ["mask 1", "mask 2"]
    assert len([line for line in lines if "%" in line]) == 6


def test_a_damaged_encoder(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = af.load(bert)
    torch.nn.init.constant_(model.token_embedding.table.weight, torch.nan)
    af.save(model, tmp_path, tokenizer=tokenizer)
    assert "NaN" in _fails(capsys, "embed", str(tmp_path), "a cat")
    assert "NaN" in _fails(capsys, "fill", str(tmp_path), "a [MASK]")


def test_writing_wrongly(gpt: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    too_long = _fails(capsys, "generate", str(gpt), "the cat " * 100)
    assert "64" in too_long
    assert "--top is a number" in _fails(capsys, "fill", str(bert), "a [MASK]", "--top", "0")
    assert "[MASK]" in _fails(capsys, "fill", str(bert), "no mask here")
    assert "fill" in _fails(capsys, "generate", str(bert), "a cat")
    assert "TEXT must be given; usage: anyformer embed MODEL TEXT ..." in _fails(capsys, "embed", str(bert))
    assert "no directory" in _fails(capsys, "generate", str(tmp_path / "a" / "b" / "c"), "x")
    assert "temperature" in _fails(capsys, "generate", str(gpt), "the", "--temperature", "-1")


@pytest.mark.parametrize("fixture", ["gpt", "bert", "t5"])
def test_verify(fixture: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    path = request.getfixturevalue(fixture)
    assert main(["verify", str(path)]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "token ids" in out
    assert "logits: largest difference" in out
    assert "different" not in out
    assert ("greedy continuation" in out) == (fixture != "bert")


@pytest.mark.parametrize("context", [2, 16])
@pytest.mark.parametrize("preset", ["gpt2-nano", "bart-base"])
def test_verify_takes_short_contexts_and_few_characters(
    preset: str, context: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = af.Tokenizer.train(TEXT, "char")
    layers = dict.fromkeys(("encoder_layers", "decoder_layers")[preset == "gpt2-nano" :], 1)
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "max_length": context,
        "d_model": 16,
        "attention": {"heads": 2},
        **layers,
    }
    config = af.preset(preset, **sizes, special_tokens={"bos": None, "eos": (), "pad": None, "decoder_start": 0})
    af.save(af.build(config), tmp_path / "model", tokenizer=tokenizer)
    assert main(["verify", str(tmp_path / "model")]) == 0
    assert f"greedy continuation: {context // 2} tokens" in capsys.readouterr().out


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("preset", ["llama-nano", "gpt2-nano"])
def test_verify_takes_decoders_that_classify(
    preset: str, padding: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = {"bos": None, "eos": (), "pad": padding, "decoder_start": None}
    sizes = {"vocab_size": 20, "d_model": 16, "decoder_layers": 1, "attention": {"heads": 2, "kv_heads": 2}}
    config = af.preset(
        preset,
        **sizes,
        special_tokens=tokens,
        head={"kind": "classification", "labels": 3, "pooling": "last", "label_bias": False},
    )
    af.save(af.build(config), tmp_path / "model")
    assert main(["verify", str(tmp_path / "model")]) == 0
    assert "equal     logits" in capsys.readouterr().out


def test_verify_notices_a_difference(
    gpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bent(*arguments: object, **options: object) -> object:
        model, tokenizer = original(*arguments, **options)
        model.token_embedding.table.weight.data[:, 0] += 0.1
        return model, tokenizer

    original = af.load
    monkeypatch.setattr("anyformer.verify.load", bent)
    assert main(["verify", str(gpt)]) == 1
    assert "different logits" in capsys.readouterr().out


def test_verify_wrongly(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    small = {"vocab_size": 20, "encoder_layers": 1, "decoder_layers": 1}
    af.save(af.build(af.preset("transformer-base", **small)), own)
    assert "no class Transformer" in _fails(capsys, "verify", str(own))
    bad = tmp_path / "bad"
    af.save(af.load(gpt)[0], bad)
    weights = load_file(bad / "model.safetensors")
    weights.pop("transformer.ln_f.weight")
    save_file(weights, bad / "model.safetensors")
    assert "transformer.ln_f.weight is missing" in _fails(capsys, "verify", str(bad))
    af.save_adapter(add_adapter(af.load(gpt)[0], LoraConfig(rank=2)), tmp_path / "adapter")
    assert "holds an adapter and no model" in _fails(capsys, "verify", str(tmp_path / "adapter"))


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_verify_runs_no_code_of_the_models(
    where: str, gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it ask whether to, nor import any of a custom generate/."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    bad = shutil.copytree(gpt, tmp_path / "bad")
    code = "raise SystemExit('it ran')\n"
    (bad / "own.py").write_text(code)
    (bad / "custom_generate").mkdir()
    (bad / "custom_generate" / "generate.py").write_text(code)
    config = json.loads((bad / where).read_text())
    classes = {
        "AutoTokenizer": ["own.Tokens", "own.Tokens"],
        "AutoModelForCausalLM": "own.Model",
        "AutoConfig": "own.C",
    }
    config |= {"auto_map": classes, "tokenizer_class": "Tokens"}
    (bad / where).write_text(json.dumps(config))
    assert main(["verify", str(bad)]) == 0


def test_verify_says_that_a_model_wants_its_own_code(
    gpt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    from transformers.dynamic_module_utils import resolve_trust_remote_code

    def remote(path: str, **options: object) -> None:
        resolve_trust_remote_code(options["trust_remote_code"], path, False, True)  # as for a class that only it has

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", remote)
    assert "brings its own code" in _fails(capsys, "verify", str(gpt))


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "pipeline", "Trainer", 3])
def test_verify_takes_models_only(name: object) -> None:
    import transformers

    assert _model_class(transformers, "GPT2LMHeadModel") is transformers.GPT2LMHeadModel
    with pytest.raises(UserError, match=f"no class {name}"):
        _model_class(transformers, name)


def test_verify_opens_no_other_model(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = shutil.copytree(gpt, tmp_path / "bad")
    (bad / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "holds an adapter" in _fails(capsys, "verify", str(bad))


def test_verify_is_one_sentence_where_transformers_fails(
    gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = shutil.copytree(gpt, tmp_path / "bad")
    (bad / "generation_config.json").write_text('{"penalty_alpha": 0.6, "top_k": 4}')
    assert "transformers" in _fails(capsys, "verify", str(bad))


def test_a_reader_that_leaves_is_no_error(gpt: Path) -> None:
    command = f"{sys.executable} -m anyformer show gpt2 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("imported", [False, True])
def test_the_objects_of_triton_are_looked_through_at_the_end(imported: bool) -> None:
    program = f"""
import atexit, gc, sys, types
if {imported}:
    sys.modules["triton"] = types.ModuleType("triton")
gc.freeze()
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 0))
sys.argv = ["anyformer", "--version"]
from anyformer.cli.main import script
script()
"""
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed.splitlines()[-1] == f"frozen {not imported}"
