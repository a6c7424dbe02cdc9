"""The command line of `anyformer train`: what the arguments mean, before any work is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from anyformer.cli.main import main
from anyformer.cli.options import flag_names
from anyformer.cli.train import read_arguments, run
from anyformer.config import RotaryScaling
from anyformer.errors import UserError
from anyformer.families import PRESETS
from anyformer.training.config import MINUTES, TrainConfig, default_learning_rate, default_tokenizer
from anyformer.training.config_file import read_yaml, to_yaml


def test_without_arguments_it_is_the_small_llama():
    config = read_arguments([])
    assert config.preset == "llama-nano"
    assert config.model == PRESETS["llama-nano"]
    assert (config.vocab_size, config.max_length) == (None, None)
    assert config.complete().minutes == MINUTES


def test_every_flag_arrives():
    line = (
        "gpt2 --data a.txt more/ --tokenizer bpe:300 --steps 7 --batch-size 3 --learning-rate 2e-3 --seed 5 "
        "--context 32 --validation v.txt --name n --runs r --device cpu --dtype float32 "
        "--model.decoder-layers 4 --model.attention.heads 2 --model.vocab-size 999"
    )
    config = read_arguments(line.split())
    assert config.data == ("a.txt", "more/")
    assert (config.tokenizer, config.steps, config.batch_size, config.learning_rate) == ("bpe:300", 7, 3, 2e-3)
    assert (config.seed, config.context, config.validation) == (5, 32, ("v.txt",))
    assert (config.name, config.runs, config.device, config.dtype) == ("n", Path("r"), "cpu", "float32")
    assert (config.model.decoder_layers, config.model.attention.heads, config.model.vocab_size) == (4, 2, 999)
    assert config.model.d_model == PRESETS["gpt2"].d_model
    assert (config.vocab_size, config.max_length) == (999, None)


@pytest.mark.parametrize("flag", ["--dropout", "--model.dropout"])
@pytest.mark.parametrize(
    ("preset", "rest", "rates"),
    [
        ("bert-mini 0", "", (0.0, 0.0, 0.0, 0.0)),
        ("bert-mini 0.3", "", (0.3, 0.3, 0.0, 0.3)),  # BERT has none within its feed-forward
        ("bert-mini 0", "--model.attention.dropout 0.2", (0.0, 0.2, 0.0, 0.0)),
        ("gpt2-nano 0.1", "", (0.1, 0.1, 0.0, 0.1)),
        ("t5-nano 0.1", "--model.embedding.dropout=0.4", (0.1, 0.1, 0.1, 0.4)),
        ("t5-small 0", "", (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_one_flag_sets_all_dropout(flag: str, preset: str, rest: str, rates: tuple[float, ...]) -> None:
    name, rate = preset.split()
    model = read_arguments([name, *rest.split(), flag, rate]).model
    assert rates == (model.dropout, model.attention.dropout, model.feed_forward.dropout, model.embedding.dropout)


def test_a_config_file_keeps_the_rates_of_dropout_that_it_has(tmp_path: Path) -> None:
    config = read_arguments(["bert-mini", "--data=a.txt", "--model.attention.dropout", "0.2"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_yaml(tmp_path / "config.yaml").model == config.model


@pytest.mark.parametrize("flag", ["--model.vocab-size=50257", "--model.vocab_size=50257"])
def test_a_vocabulary_is_given_even_if_it_is_the_presets(flag: str):
    assert read_arguments(["gpt2", flag]).vocab_size == 50257


def test_help_of_the_model_shows_the_presets_values(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        run(["llama-3.2-1b", "--help-model"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model.d-model N default: 2048 " in shown
    assert "--model.norm.placement {pre,post,branch,sandwich,parallel,parallel_shared}" in shown
    assert "--model.position.scaling.factor" in shown  # LLaMA 3.2 has it
    with pytest.raises(SystemExit):
        run(["gpt2", "--help-model"])
    assert "--model.position.scaling.factor" not in capsys.readouterr().out


def test_every_setting_of_a_run_is_a_flag():
    assert sorted([*flag_names(TrainConfig), "model", "preset", "vocab_size", "max_length"]) == sorted(
        field.name for field in dataclasses.fields(TrainConfig)
    )


@pytest.mark.parametrize(
    ("flag", "attention"),
    [
        ("--model.attention.no-bias", {"bias": False}),
        ("--model.attention.bias", {"bias": True}),
        ("--model.attention.window=8", {"window": 8}),
        ("--model.attention.window=None", {"window": None}),
    ],
)
def test_fields_of_every_type_can_be_changed(flag: str, attention: dict[str, object]):
    model = read_arguments(["gpt2", flag, "--model.special_tokens.eos", "1", "2", "--model.head.bias", "none"]).model
    assert model == PRESETS["gpt2"].replace(attention=attention, special_tokens={"eos": (1, 2)}, head={"bias": "none"})


def test_a_part_that_the_preset_lacks_can_be_added():
    flags = ["--model.position.scaling.kind", "linear", "--model.position.scaling.factor", "2"]
    model = read_arguments(["llama-nano", *flags]).model
    assert model.position.scaling == RotaryScaling(kind="linear", factor=2.0)


def test_context_is_the_models_and_256_at_most():
    assert read_arguments(["gpt2"]).complete().context == 256
    nano = read_arguments(["gpt2-nano"]).complete()
    assert nano.context == nano.model.max_length == 64


def test_max_length_follows_the_context_unless_it_is_given():
    config = read_arguments(["gpt2", "--context", "32"])
    assert config.complete().model.max_length == 32
    config = read_arguments(["gpt2", "--context", "32", "--model.max-length", "128"])
    assert config.complete().model.max_length == 128
    config = read_arguments(["gpt2", "--model.max-length", "512"])
    assert config.complete().context == 512


def test_context_beyond_the_given_max_length():
    config = read_arguments(["gpt2", "--context", "64", "--model.max-length", "32"])
    with pytest.raises(UserError, match="--context 64 is longer than the model's max_length of 32"):
        config.complete()


def test_choices_suit_the_model():
    rates = [default_learning_rate(PRESETS[name]) for name in ("gpt2-nano", "gpt2", "gpt2-xl")]
    assert rates[0] > rates[1] > rates[2]
    assert default_learning_rate(PRESETS["bert-base"]) < default_learning_rate(PRESETS["gpt2"])
    assert default_tokenizer("causal", 10_000_000) == "bpe:2048"
    assert default_tokenizer("masked", 1_000) == "wordpiece:512"
    assert default_tokenizer("span_corruption", 10**12) == "unigram:32768"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpt3"], r"no preset 'gpt3' \(did you mean 'gpt2'\?\)"),
        (["--steps", "0"], "--steps 0 is too small"),
        (["--minutes", "0"], "--minutes 0.0 must be positive"),
        (["--minutes", "1", "--steps", "1"], "give one of the two"),
        (["--learning-rate", "-1"], "--learning-rate -1.0 must be positive"),
        (["--warmup", "1"], "--warmup 1.0 is a share"),
        (["--seed", "-3"], "--seed -3 must lie in"),
        (["--dtype", "float8"], r"no such dtype \(did you mean 'float32'\?\)"),
        (["--objective", "causl"], r"no such objective \(did you mean 'causal'\?\)"),
        (["--optimizer", "muom"], r"no such optimizer \(did you mean 'muon'\?\)"),
        (["--engine", "ddq"], r"no such engine \(did you mean 'ddp'\?\)"),
        (["--schedule", "cosin"], r"no schedule 'cosin' \(did you mean 'cosine'\?\)"),
        (["--schedule", "inverse_sqrt", "--warmup", "0"], "inverse_sqrt"),
        (["--source", "a.en"], "need both --source and --target"),
        (["--processes", "2"], "needs an --engine"),
        (["--tensor-parallel", "2"], "--tensor-parallel 2 goes with --engine fsdp alone"),
        (
            ["--engine", "fsdp", "--context-parallel", "2", "--document-masking"],
            "--document-masking does not work with",
        ),
        (["--engine", "ddp", "--context-parallel", "2"], "--context-parallel 2 goes with --engine fsdp alone"),
        (["--engine", "deepspeed", "--processes", "2", "--tensor-parallel", "2"], "goes with --engine fsdp alone"),
        (["--average", "last:5"], "say how often by --save-every"),
        (["--label-smoothing", "1"], "--label-smoothing 1.0 is a share"),
        (["--zero-stage", "4"], "--zero-stage 4 must be 1, 2 or 3"),
        (["--log-every", "0"], "--log-every 0 is too small"),
        (["--name", "../x"], "name of a folder"),
        (["gpt2", "--whole-word-masking"], "--whole-word-masking would do nothing here: it is for --objective masked"),
        (["bert", "--document-masking"], "--document-masking would do nothing here: it is for --objective causal"),
        (["--batch-tokens", "512"], "--batch-tokens would do nothing here: it is for pairs"),
        (["--engine", "ddp", "--zero-stage", "2"], "--zero-stage would do nothing here: it is for --engine deepspeed"),
        (["--decay=0.3"], "--decay would do nothing here: it is for --schedule wsd; weights decay by --weight-decay"),
        (["--config"], "--config expected one argument"),
        (["--config", "missing.yaml"], "missing.yaml can't be read: No such file"),
    ],
)
def test_bad_arguments_are_one_sentence(argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        read_arguments(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stepz", "3"], "--steps"),
        (["--steps", "many"], "many"),
        (["--model.decoder-layer", "3"], "--model.decoder-layers"),
        (["gpt2", "--model.attention.heads", "7"], "attention.heads"),
    ],
)
def test_unknown_flags_name_the_nearest(argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        read_arguments(argv)


def test_a_text_in_the_place_of_the_preset_is_told_where_it_goes(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("a text")
    for name in (str(tmp_path / "notes.txt"), str(tmp_path)):
        with pytest.raises(UserError, match=f"--data {name}"):
            read_arguments([name])
    for name in ("notes.txt", "x" * 5000, "a\0"):
        with pytest.raises(UserError, match="There is no preset"):
            read_arguments([name])


def test_a_config_file_is_the_base_and_flags_override_it(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: gpt2-nano\nsteps: 50\nlearning_rate: 1e-3\ndata: a.txt\nmodel: {decoder_layers: 2}\n")
    config = read_arguments(["--config", str(path), "--batch-size", "2", "--model.attention.heads=2"])
    assert (config.preset, config.steps, config.learning_rate, config.batch_size) == ("gpt2-nano", 50, 1e-3, 2)
    assert config.data == ("a.txt",)
    assert (config.model.decoder_layers, config.model.attention.heads, config.model.d_model) == (2, 2, 128)
    assert (config.vocab_size, config.max_length) == (None, None)
    assert read_arguments([f"--config={path}", "--minutes", "3"]).steps is None
    assert read_arguments(["gpt2", "--config", str(path)]).model == PRESETS["gpt2"]


def test_a_written_config_reads_back(tmp_path: Path):
    config = read_arguments(["qwen3", "--steps", "3", "--data", "a.txt", "--tokenizer", "char", "--name", "x"])
    complete = config.complete()
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(dataclasses.replace(complete, device="cpu")), encoding="utf-8")
    back = read_yaml(path)
    assert back.model == complete.model
    assert back.name is None
    assert back.device == "cpu"
    assert back.data == (str(Path("a.txt").absolute()),)
    assert back.complete().learning_rate == complete.learning_rate
    assert (back.vocab_size, back.max_length) == (back.model.vocab_size, back.model.max_length)
    # another tokenizer or context makes these follow again
    again = read_arguments(["--config", str(path), "--tokenizer", "bpe:300", "--context", "8"])
    assert (again.vocab_size, again.max_length) == (None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepz: 3", r"stepz: no such field \(did you mean 'steps'\?\)"),
        ("model: {decoder_layer: 3}", r"model.decoder_layer: no such field \(did you mean 'decoder_layers'\?\)"),
        ("model: {attention: {head: 3}}", r"model.attention.head: no such field \(did you mean 'heads'\?\)"),
        ("model: 3", "model wants fields of its own"),
        ("preset: gpt3", "did you mean 'gpt2'"),
        ("steps: many", "steps: wants a whole number, not 'many'"),
        ("steps: true", "steps: wants a whole number, not True"),
        ("learning_rate: fast", "learning_rate: wants a number, not 'fast'"),
        ("- 3", "should hold fields"),
        ("a: [", "is not YAML"),
        ("seed: -1", "--seed -1 must lie in"),
    ],
)
def test_a_bad_config_file_is_one_sentence(content: str, message: str, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_arguments(["--config", str(path)])


@pytest.mark.parametrize(
    ("argv", "objective", "smoothing"),
    [
        (["gpt2"], "causal", 0.0),
        (["bert"], "masked", 0.0),
        (["t5-small"], "span_corruption", 0.0),
        (["transformer-tiny"], "span_corruption", 0.0),
        (["transformer-tiny", "--source", "a.en", "--target", "a.de"], "seq2seq", 0.1),
        (["t5-small", "--data", "a.jsonl", "--source", "en", "--target", "de"], "seq2seq", 0.1),
        (["gpt2", "--label-smoothing", "0.2"], "causal", 0.2),
    ],
)
def test_every_model_has_its_objective(argv: list[str], objective: str, smoothing: float):
    config = read_arguments(argv)
    complete = config.complete()
    assert (complete.objective, complete.label_smoothing) == (objective, smoothing)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpt2", "--objective", "masked"], "--objective masked trains an encoder-only model, and gpt2 is a decoder"),
        (["bert", "--objective", "seq2seq"], "--objective seq2seq trains an encoder-decoder, and bert is an encoder"),
        (["t5-small", "--objective", "seq2seq"], "seq2seq needs pairs: give --source and --target"),
        (["gpt2", "--source", "a", "--target", "b"], "causal has no use for --source"),
    ],
)
def test_an_objective_must_suit_the_model(argv: list[str], message: str):
    config = read_arguments(argv)
    with pytest.raises(UserError, match=message):
        config.complete()


@pytest.mark.parametrize("flag", ["--name", "--runs=elsewhere"])
def test_a_resumed_run_stays_where_it_is(flag: str, tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=f"--resume goes on in .*: leave out {flag.partition('=')[0]}"):
        run(["--resume", str(tmp_path), flag, "x"])


def test_the_lists_of_names_are_those_of_the_registries():
    from anyformer.training import config, optimizer
    from anyformer.training.strategies import launch

    assert optimizer.OPTIMIZERS is config.OPTIMIZERS
    assert launch.ENGINES is config.ENGINES


def test_a_yaml_file_holds_plain_values():
    config = read_arguments(["bert"])
    assert yaml.safe_load(to_yaml(config.complete()))["model"]["special_tokens"]["eos"] == []


def test_a_missing_file_in_the_place_of_a_preset():
    with pytest.raises(UserError, match=r"There is no preset 'missing.txt', nor such a file; text is given by --data"):
        run(["missing.txt"])


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_quiet_command_prints_nothing(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "text.txt").write_text("The cat sat on the mat. a dog ran to my house. " * 40)
    small = ["--model.d-model=16", "--model.decoder-layers=1", "--model.attention.heads=2"]
    common = [
        "--steps=2",
        "--batch-size=2",
        "--context=16",
        "--device=cpu",
        "--name=new",
        f"--data={tmp_path}/text.txt",
    ]
    train = ["train", "gpt2-nano", "--tokenizer=char", *small, *common, "--quiet"]
    assert main([*train, "--runs", str(tmp_path / "first")]) == 0
    if command == "finetune":
        model = str(tmp_path / "first" / "new")
        assert main(["finetune", model, *common, "--runs", str(tmp_path / "second"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
