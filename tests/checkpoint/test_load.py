"""Files that are damaged, hostile, missing or too large: one sentence each, and nothing lost."""

import errno
import json
import shutil
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.checkpoint import weights_fingerprint
from anyformer.checkpoint.sources import BLOCK
from anyformer.config import PoolingConfig
from anyformer.errors import UserError
from anyformer.model import Transformer
from tests.evaluation.models import decoder, encoder


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return af.build(
        af.preset("gpt2-nano", vocab_size=30, d_model=16, decoder_layers=2, feed_forward={"width": 32})
    ).eval()


@pytest.fixture
def directory(model: Transformer, tmp_path: Path) -> Path:
    af.save(model, tmp_path / "model")
    return tmp_path / "model"


def _same(a: Transformer, b: Transformer) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_saving_and_loading_changes_nothing(model: Transformer, directory: Path) -> None:
    again, tokenizer = af.load(directory)
    assert tokenizer is None
    assert _same(model, again)
    assert again.config == model.config
    assert not again.training
    assert {path.name for path in directory.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_run_directory_is_as_good_as_its_model(model: Transformer, directory: Path) -> None:
    again, _ = af.load(directory.parent)
    assert _same(model, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "bfloat16", "float32"])
def test_the_format_can_be_chosen(directory: Path, dtype: Any) -> None:
    model, _ = af.load(directory, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {weight.dtype for weight in model.parameters()} == {wanted}
    af.save(model, directory.parent / "other")
    stored, _ = af.load(directory.parent / "other")
    assert _same(model, stored)
    assert json.loads((directory.parent / "other" / "config.json").read_text())["dtype"] == str(wanted)[6:]


def test_unknown_formats_are_refused(directory: Path) -> None:
    with pytest.raises(af.UserError, match=r"no dtype 'int3'.*float32"):
        af.load(directory, dtype="int3")


def test_shards(model: Transformer, tmp_path: Path) -> None:
    af.save(model, tmp_path / "m", max_shard_size=5_000)
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 12_000 for path in shards)
    again, _ = af.load(tmp_path / "m")
    assert _same(model, again)
    af.save(model, tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / "m" / "model.safetensors.index.json").exists()
    assert _same(model, af.load(tmp_path / "m")[0])


@pytest.mark.parametrize("keep", [0, 7, 100, 3_000])
def test_truncated_weights(directory: Path, keep: int) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(af.UserError, match=r"model\.safetensors is not a whole safetensors file"):
        af.load(directory)


def test_an_index_may_not_lead_out_of_its_folder(directory: Path, tmp_path: Path) -> None:
    shutil.copy(directory / "model.safetensors", tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        index = {"weight_map": dict.fromkeys(load_file(directory / "model.safetensors"), name)}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(af.UserError, match="names a file outside itself"):
            af.load(directory)


def test_a_shard_that_is_missing_is_named(model: Transformer, tmp_path: Path) -> None:
    af.save(model, tmp_path / "m", max_shard_size=5_000)
    (tmp_path / "m" / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    next((tmp_path / "m").glob("model-00001*")).unlink()
    with pytest.raises(af.UserError, match=r"model-0000\d.* is missing, though the index names it"):
        af.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", r"is not JSON: .* in line 1, column 2\.$"),
        ("config.json", "[]", "should hold a JSON object"),
        ("config.json", "{}", "no model_type"),
        ("config.json", '{"model_type": "gpt3"}', "'gpt3' is not supported.*did you mean 'gpt2'"),
        ("config.json", '{"model_type": "gpt2", "architectures": ["GPT2ForHats"]}', "'GPT2ForHats' is not supported"),
        ("config.json", '{"model_type": "gpt2", "architectures": "\\u001bGPT2"}', "'\\\\x1bGPT2' is not supported"),
        ("config.json", '{"model_type": "gpt2", "architectures": [["GPT2"]]}', "'GPT2'"),
        ("config.json", '{"model_type": "gpt2", "n_head": 5}', "attention.heads"),
        ("config.json", '{"model_type": "gpt2", "n_head": "many"}', "attention.heads: wants a whole number"),
        ("config.json", '{"model_type": "gpt2", "activation_function": "hat"}', "'hat' is not supported"),
        (
            "config.json",
            '{"model_type": "llama", "rope_scaling": {"rope_type": "proportional"}}',
            "'proportional' is none of linear, dynamic",
        ),
        (
            "config.json",
            '{"model_type": "llama", "rope_scaling": {"rope_type": "longrope"}}',
            "longrope scaling has no short_factor",
        ),
        ("config.json", '{"model_type": []}', r"\[\] is not supported|misshapen"),
        ("config.json", '{"model_type": "gpt2", "activation_function": null}', "misshapen|not supported"),
        ("config.json", '{"model_type": "gpt2", "n_layer": 9999}', "speaks of 9999 layers"),
        ("config.json", '{"model_type": "gpt2", "n_embd": 1200000000000}', "No machine has room"),
        ("config.json", '{"model_type": "gpt2", "n_embd": 768.0}', "d_model: wants a whole number"),
        ("config.json", '{"model_type": "llama", "rope_scaling": "linear"}', "misshapen"),
        ("config.json", '{"model_type": "t5", "feed_forward_proj": 5}', "misshapen"),
        pytest.param("config.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "100 levels deep", id="deep"),
        pytest.param("config.json", '{"a": ' + "9" * 5000 + "}", r"is not JSON: .*5000 digits\.$", id="long"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "no weight_map"),
        ("model.safetensors.index.json", r'{"weight_map": {"a": "\u0000"}}', "names a file outside itself"),
        ("modules.json", "[1]", "list of modules"),
        ("modules.json", '[{"type": "x.CNN", "path": ""}]', "'CNN', which is not supported"),
        ("modules.json", '[{"type": "x.Dense", "path": ""}]', "config.json describes a layer with"),
        ("modules.json", '[{"type": "x.Dense", "path": "../x"}]', "names a file outside itself"),
        ("config_sentence_transformers.json", '{"prompts": ["query"]}', "prompts wants an object"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 5}}', "prompts"),
        (
            "config_sentence_transformers.json",
            '{"prompts": {"query": "?"}, "default_prompt_name": "text"}',
            "default_prompt: 'text' is none of prompt_names",
        ),
    ],
)
def test_damaged_json(directory: Path, name: str, text: str, message: str) -> None:
    (directory / name).write_text(text)
    with pytest.raises(af.UserError, match=rf"(?s){message}"):
        af.load(directory)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int32,
        torch.bool,
        torch.uint8,
        torch.float8_e4m3fn,
        pytest.param(
            torch.complex64,
            marks=pytest.mark.skipif(
                Version(version("safetensors")) < Version("0.7"), reason="safetensors 0.6 writes no complex numbers"
            ),
        ),
    ],
)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_weights_that_are_no_floats(directory: Path, dtype: torch.dtype, quantize: str | None) -> None:
    state = load_file(directory / "model.safetensors")
    name = next(name for name in state if name.endswith("c_attn.weight"))
    save_file({**state, name: state[name].to(dtype)}, directory / "model.safetensors")
    with pytest.raises(af.UserError, match=rf"{name} is stored as {str(dtype)[6:]}"):
        af.load(directory, quantize=quantize)


_BAD: dict[str, list[Any]] = {
    "eos_token_id": ["x", 1.0, True, {}, ["x"], [[1]]],
    "pad_token_id": ["x", [1], 1.5],
    "decoder_start_token_id": [[], "x", 10**30],
    "no_repeat_ngram_size": [-1, "x", 1.5, True],
    "min_length": ["x", [1], 10**30],
    "num_beams": [10**12, 1e12, 0, "4", True],
    "temperature": [[], "x", float("nan"), True],
    "repetition_penalty": [0, -1.0, "x", float("inf")],
    "length_penalty": ["x", float("inf")],
    "early_stopping": ["always", 2],
    "bad_words_ids": [5, [5], [["x"]]],
    "sequence_bias": [5, [[1, 2.0]], [[[1], "x"]], [[[1]]]],
    "suppress_tokens": ["x", [1.5]],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in _BAD.items() for value in values])
def test_generation_settings_of_the_wrong_kind(directory: Path, field: str, value: Any) -> None:
    path = directory / "generation_config.json"
    path.write_text(json.dumps({field: value}))
    with pytest.raises(af.UserError, match=rf"generation_config\.json: {field} should be "):
        af.load(directory)
    path.unlink()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(af.UserError, match=field if field.endswith("token_id") else rf"/config\.json: {field} should"):
        af.load(directory)


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [1, 2], "pad_token_id": -1, "temperature": 0.6, "top_p": 1, "top_k": 0, "do_sample": True},
        {"num_beams": 4, "length_penalty": 2, "early_stopping": "never", "bad_words_ids": [[29]], "min_length": 0},
        {"eos_token_id": None, "temperature": None, "num_beams": None, "max_length": "?", "transformers_version": "4"},
        {"sequence_bias": [[[1, 2], -3.5]], "forced_eos_token_id": 0, "suppress_tokens": [], "_from": {}},
    ],
)
def test_generation_settings_as_they_are_published(directory: Path, settings: dict[str, Any]) -> None:
    (directory / "generation_config.json").write_text(json.dumps(settings))
    assert af.load(directory)[0].origin.generation == settings


@pytest.mark.parametrize("device", ["nonsense", "meta", "", "cuda:99"])
def test_devices_that_are_not_there(directory: Path, device: str) -> None:
    with pytest.raises(af.UserError, match=f"There is no device '{device}'"):
        af.load(directory, device=device)


def test_missing_files_are_named(directory: Path, tmp_path: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(af.UserError, match=r"has no model\.safetensors"):
        af.load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(af.UserError, match=r"has no config\.json"):
        af.load(directory)
    with pytest.raises(af.UserError, match="There is no directory"):
        af.load(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(af.UserError, match=r"There is no file nowhere\.gguf"):
        af.load("nowhere.gguf")
    with pytest.raises(af.UserError, match="is a file"):
        af.load(directory / "generation_config.json")


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(af.UserError, match="no directory someone/something, and the hub can't be reached"):
        af.load("someone/something")
    with pytest.raises(af.UserError, match="preset without weights: `anyformer train gpt2-nano` trains it"):
        af.load("gpt2-nano")


def test_pickles_only_if_they_are_allowed(model: Transformer, directory: Path) -> None:
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises(af.UserError, match="a pickle; if you trust its author, add --allow-pickle"):
        af.load(directory)
    again, _ = af.load(directory, allow_pickle=True)
    assert _same(model, again)


def test_a_pickle_that_runs_code_does_not_run_it(directory: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (directory / "model.safetensors").unlink()
    torch.save({"trap": Trap()}, directory / "pytorch_model.bin")
    with pytest.raises(af.UserError, match="can't be read as a file of tensors"):
        af.load(directory, allow_pickle=True)
    assert not (tmp_path / "sprung").exists()


def test_a_full_disk_leaves_the_old_model(model: Transformer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    other = af.build(model.config)
    monkeypatch.setattr(import_module("anyformer.checkpoint.save"), "write_tensors", full)
    with pytest.raises(af.UserError, match="can't be written: No space left on device"):
        af.save(other, directory)
    with pytest.raises(af.UserError, match="can't be written"):
        af.save(other, directory.parent / "new")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_a_place_that_is_a_file(model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(af.UserError, match="can't be written"):
        af.save(model, tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_tokenizer_that_is_too_large(model: Transformer, tmp_path: Path) -> None:
    tokenizer = af.Tokenizer.train(["".join(map(chr, range(33, 100)))], "char")
    with pytest.raises(af.UserError, match="67 tokens and the model only 30"):
        af.save(model, tmp_path / "m", tokenizer=tokenizer)
    assert not (tmp_path / "m").exists()


def test_the_papers_own_layout_is_written_as_our_own_type(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = {"vocab_size": 20, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "attention": {"heads": 2}}
    config = af.preset("transformer-base", **small)
    assert af.save(af.build(config), tmp_path / "paper") == "anyformer"
    assert "no Hugging Face class can express this model" in caplog.text
    caplog.clear()
    assert af.load(tmp_path / "paper")[0].config == config
    assert af.save(af.build(config.replace(**{"position.layout": "halves"})), tmp_path / "code") == "marian"
    assert caplog.text == ""


def test_pooling_files_are_written_and_read(tmp_path: Path) -> None:
    config = af.preset("bert-tiny", vocab_size=20).replace(
        head={"kind": "none", "pooler": "tanh", "transform": None, "bias": "none"},
        pooling={"kind": "first", "normalize": True, "max_tokens": 12},
    )
    af.save(af.build(config), tmp_path / "m")
    assert af.load(tmp_path / "m")[0].config.pooling == PoolingConfig(kind="first", normalize=True, max_tokens=12)


def test_names_that_tensorflow_gave(tmp_path: Path) -> None:
    config = af.preset("bert-tiny", vocab_size=20, encoder_layers=1)
    model = af.build(config)
    af.save(model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed, file, metadata={"format": "pt"})
    assert _same(model, af.load(tmp_path / "m")[0])


def test_no_companion_of_an_earlier_model_stays(tmp_path: Path) -> None:
    small = {"vocab_size": 300, "d_model": 32, "attention": {"heads": 2}}
    old = af.build(af.preset("bert-tiny", **small, pooling={"kind": "first", "normalize": True}))
    new = af.build(af.preset("bert-tiny", **small))
    words = af.Tokenizer.train(["the cat sat", "on the mat"], "bpe:280")
    chatty = af.Tokenizer(words.backend, {**words.config, "chat_template": "{{ messages }}"})
    af.save(old, tmp_path / "there", tokenizer=chatty)
    (tmp_path / "there" / "chat_template.jinja").write_text("an older one")
    for mine in ("README.md", "notes.json"):
        (tmp_path / "there" / mine).write_text("mine")
    for name in ("there", "fresh"):
        af.save(new, tmp_path / name, tokenizer=words)
    there, fresh = (
        {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
        for place in (tmp_path / "there", tmp_path / "fresh")
    )
    assert there - fresh == {"README.md", "notes.json"}
    assert af.load(tmp_path / "there")[0].config.pooling == new.config.pooling
    af.save(new, tmp_path / "there")
    assert af.load(tmp_path / "there")[1] is not None


@pytest.fixture(scope="module")
def two_layers() -> Transformer:
    torch.manual_seed(0)
    return af.build(af.preset("llama-nano", vocab_size=3000, d_model=128, decoder_layers=2))


def test_the_fingerprint_is_that_of_the_content(two_layers: Transformer, tmp_path: Path) -> None:
    for kind in ("whole", "shards"):
        af.save(two_layers, tmp_path / kind, max_shard_size=10**12 if kind == "whole" else 10**6)
    af.save_gguf(two_layers, tmp_path / "model.gguf")
    paths = [tmp_path / name for name in ("whole", "shards", "model.gguf")]
    fingerprints = [weights_fingerprint(path) for path in paths]
    assert len(set(fingerprints)) == len(paths)
    shutil.copytree(tmp_path / "shards", tmp_path / "run" / "model")
    assert weights_fingerprint(tmp_path / "run") == fingerprints[1]
    (tmp_path / "whole" / "config.json").write_text("{}")
    assert weights_fingerprint(tmp_path / "whole") == fingerprints[0]


def test_any_change_changes_the_fingerprint(two_layers: Transformer, tmp_path: Path) -> None:
    af.save(two_layers, tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    assert len(content) > 2 * BLOCK
    first = weights_fingerprint(tmp_path)
    positions = [0, 7, BLOCK - 1, BLOCK, len(content) // 2, len(content) - 1]
    changed = [content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :] for position in positions]
    changed += [content + b"\0", content[:-1]]
    # Rows of a table in another order.
    row = 4 * two_layers.config.d_model
    begin = len(content) - 9 * row
    changed.append(content[:begin] + content[begin + row : begin + 2 * row] + content[begin : begin + row])
    changed[-1] += content[begin + 2 * row :]
    assert len(changed[-1]) == len(content)
    fingerprints = []
    for each in changed:
        file.write_bytes(each)
        fingerprints.append(weights_fingerprint(tmp_path))
    assert len({first, *fingerprints}) == len(changed) + 1


def test_weights_that_are_missing_are_named(two_layers: Transformer, tmp_path: Path) -> None:
    af.save(two_layers, tmp_path, max_shard_size=10**6)
    next(tmp_path.glob("*-00002-*")).unlink()
    with pytest.raises(af.UserError, match=r"model-00002.* can't be read"):
        weights_fingerprint(tmp_path)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    heads = {
        "classify": {"kind": "classification", "labels": 2, "label_names": ("a", "b"), "pooler": "tanh"},
        "tag": {"kind": "token_classification", "labels": 2, "label_names": ("O", "B-x")},
    }
    for name, head in heads.items():
        model, tokenizer = encoder(head)
        af.save(model, folder / name, tokenizer=tokenizer)
    model, tokenizer = decoder()
    af.save(model, folder / "write", tokenizer=tokenizer)
    return {name: str(folder / name) for name in (*heads, "write")}


def test_a_directory_is_the_model_and_its_tokenizer(directories: dict[str, str]) -> None:
    texts = ["the cat sat", "a good dog"]
    for name, functions in {
        "classify": [af.classify],
        "tag": [af.tag],
        "write": [partial(af.generate, max_new_tokens=3), af.score, af.embed],
    }.items():
        model, tokenizer = af.load(directories[name])
        for function in functions:
            call: Any = function
            expected = call(model, tokenizer, texts)
            for given in (directories[name], Path(directories[name])):
                for found in (call(given, texts), call(given, None, texts), call(given, tokenizer, texts)):
                    same = torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
                    assert same, name
    rows = [{"text": text, "label": "a"} for text in texts]
    assert af.classify(directories["classify"], rows) == af.classify(directories["classify"], texts)
    assert af.tag(directories["tag"], rows) == af.tag(directories["tag"], texts)
    assert af.evaluate(directories["classify"], rows) == af.evaluate(*af.load(directories["classify"]), rows)
    assert af.evaluate(directories["classify"], data=rows, task="classify").task == "classify"


def test_what_is_no_model_is_one_sentence(directories: dict[str, str]) -> None:
    call: Any = af.classify
    with pytest.raises(UserError, match=r"classify takes a model and its tokenizer, .* was given a tuple"):
        call(af.load(directories["classify"]), ["a text"])
    with pytest.raises(UserError, match=r"alone, and was given a list there"):
        call(af.load(directories["classify"])[0], ["a text"])
    for load in (af.load, partial(af.classify, texts=["a text"])):
        with pytest.raises(UserError, match="There is no directory 'xxx"):
            load("x" * 5000)
    named: Any = af.load
    for name, given in (("", "an empty name"), (None, "a NoneType")):
        with pytest.raises(UserError, match=f"named by its directory, a GGUF file or a hub id, not by {given}"):
            named(name)
    with pytest.raises(UserError, match="There is no data at 'xxx"):
        af.evaluate(*af.load(directories["classify"]), "x" * 5000)


def test_a_vector_in_another_dtype_is_not_the_dtype_of_a_model(tmp_path: Path) -> None:
    model = af.build(af.preset("llama-nano", decoder_layers=1)).to(torch.bfloat16)
    af.save(model, tmp_path / "model")
    file = next((tmp_path / "model").glob("*.safetensors"))
    weights = load_file(file)
    name = next(name for name, weight in weights.items() if weight.dim() == 1)
    save_file({**weights, name: weights[name].float()}, file, {"format": "pt"})
    assert af.load(tmp_path / "model")[0].dtype == torch.bfloat16
    save_file({name: weight.float() if weight.dim() > 1 else weight for name, weight in weights.items()}, file)
    assert af.load(tmp_path / "model")[0].dtype == torch.float32
