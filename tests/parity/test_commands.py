"""Every model type through the commands that its owner would type: tuned, opened by its peers, asked, looked into.

All of it is slow: the gate has one type of each kind, each with one task.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

import anyformer as af
from anyformer.cli.main import main
from anyformer.generation import encode_prompt
from tests.finetuning import toys
from tests.parity import hf_models
from tests.parity.conversion import assert_close, caches_rightly
from tests.parity.model_spec import CONTEXT, KINDS, ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and PEFT's own
Bases = Callable[[str], Path]

TASKS: Mapping[str, tuple[str, ...]] = {
    "decoder": ("text", "chat", "completion", "preference", "embed", "classify", "tag"),
    "encoder": ("text", "embed", "classify", "tag"),
    "seq2seq": ("text", "completion", "seq2seq", "embed", "classify", "tag"),
}
"""The tasks of each kind of model; a classifier is one where Hugging Face has the class."""
CLASSIFIERS = {"classify": "ForSequenceClassification", "tag": "ForTokenClassification"}
SPECIAL = {"decoder": "causal", "encoder": "masked", "seq2seq": "span_corruption"}
GATE = {("mixtral", "completion", True), ("xlm-roberta", "tag", False), ("m2m_100", "seq2seq", True)}
TEXT = "the cat sat on the mat because it was a good dog ."
LANGUAGE_HEADS = ("LMHeadModel", "ForCausalLM", "MTModel", "ForConditionalGeneration", "ForMaskedLM")


@cache
def drawn(family: str) -> ModelSpec:
    """A model of a family that writes text or fills it in, whose flags were drawn."""
    classes = (name for name, its in hf_models.ARCHITECTURES.items() if its == family)
    architecture = next(name for name in classes if name.endswith(LANGUAGE_HEADS))
    found: list[ModelSpec] = []

    @settings(max_examples=3, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(hf_models.models(architecture).filter(lambda spec: not spec.is_dynamic))
    def draw(spec: ModelSpec) -> None:
        found.append(spec)

    draw()
    return found[-1]


@cache
def tokenizer(kind: str) -> af.Tokenizer:
    size = "wordpiece:120" if kind == "encoder" else "bpe:290"
    trained = af.Tokenizer.train([toys.WORDS * 9], size, special=SPECIAL[kind])
    template = {"chat_template": toys.TEMPLATE} if kind == "decoder" else {}
    return af.Tokenizer(trained.backend, {**trained.config, **template})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The directory of each family's model, with a tokenizer, made when it is asked for."""

    @cache
    def make(family: str) -> Path:
        folder, kind, spec = tmp_path_factory.mktemp(family), KINDS[family], drawn(family)
        words = tokenizer(kind)
        pad = words.eos if words.pad is None else words.pad
        ends = {"eos_token_id": 0 if kind == "encoder" else words.eos, "bos_token_id": pad, "pad_token_id": pad}
        starts = {"decoder_start_token_id": pad, "forced_eos_token_id": None} if kind == "seq2seq" else {}
        sizes = dict.fromkeys({"vocab_size", "decoder_vocab_size"} & set(spec.options), words.vocab_size)
        if spec.options.get("max_position_embeddings", CONTEXT) < CONTEXT:
            sizes["max_position_embeddings"] = CONTEXT
        replace(spec, options={**spec.options, **ends, **starts, **sizes}).build().save_pretrained(folder)
        words.save(folder)
        return folder

    return make


def run(*argv: str) -> tuple[int, str, str]:
    """The status of a command, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(argv))
    return status, out.getvalue(), err.getvalue()


def class_of(folder: Path) -> Any:
    """Hugging Face's class of a directory."""
    return getattr(transformers, json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0])


def tuned_base(base: Path, task: str, labels: int) -> Any:
    """The model of Hugging Face's that an adapter is for."""
    if task in CLASSIFIERS:
        return getattr(transformers, f"AutoModel{CLASSIFIERS[task]}").from_pretrained(base, num_labels=labels)
    return (transformers.AutoModel if task == "embed" else class_of(base)).from_pretrained(base)


def answers(model: Any, words: af.Tokenizer) -> Tensor:
    """What a model of either side computes of a text: logits, or hidden states without a head."""
    # BART's classifiers and T5's read the vector of the last end of text.
    end = [words.eos] if model.config.is_encoder_decoder else []
    ids = torch.tensor([[*words.encode(TEXT)[:20], *end]])
    is_ours = isinstance(model, af.Transformer)
    with torch.no_grad():
        if is_ours:
            both = model.config.is_encoder_decoder and model.config.head.kind != "classification"
            found = model.eval()(ids, ids if both else None)
            return found.hidden if found.logits is None else found.logits
        theirs = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        both = model.config.is_encoder_decoder and "Classification" not in type(theirs).__name__
        found = model.eval()(input_ids=ids, **({"decoder_input_ids": ids} if both else {}))
    return found.logits if "logits" in found else found[0]


def fits(family: str, task: str) -> bool:
    """Whether a model of this family can be tuned for a task."""
    if task in CLASSIFIERS:
        return any(its == family and name.endswith(CLASSIFIERS[task]) for name, its in hf_models.ARCHITECTURES.items())
    return task in TASKS[KINDS[family]]


def tune(base: Path, folder: Path, task: str, lora: bool) -> tuple[int, str, Path]:
    """Two steps of `anyformer finetune`: the status, what was said, the run, and the data."""
    data = folder / ("notes.txt" if task == "text" else "rows.jsonl")
    if task == "text":
        data.write_text(f"{toys.WORDS}\n" * 30, encoding="utf-8")
    else:
        toys.write(data, toys.rows(task, 30))
    flags = ["--steps=2", "--batch-size=4", "--device=cpu", "--dtype=float32", "--context=32", "--learning-rate=1e-2"]
    argv = ["finetune", str(base), f"--data={data}", f"--task={task}", *flags, f"--runs={folder}", "--name=run"]
    status, _, said = run(*argv, *(["--lora=4"] if lora else []))
    return status, said, data


def cases() -> list[Any]:
    """Every task that fits a family, with all weights and with an adapter."""
    return [
        pytest.param(family, task, lora, marks=[] if (family, task, lora) in GATE else pytest.mark.slow)
        for family in hf_models.FAMILIES
        for task in TASKS[KINDS[family]]
        if fits(family, task)
        for lora in (False, True)
    ]


@pytest.mark.parametrize(("family", "task", "lora"), cases())
def test_a_tuned_model_is_the_same_in_transformers_and_peft(
    family: str, task: str, lora: bool, bases: Bases, tmp_path: Path
) -> None:
    status, said, data = tune(bases(family), tmp_path, task, lora)
    assert status == 0, said
    folder = tmp_path / "run" / "model"
    model, words = af.load(tmp_path / "run")
    assert words is not None
    if lora:
        raw = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = tuned_base(bases(family), task, model.config.head.labels)
        theirs = peft.PeftModel.from_pretrained(base, str(folder))
        config = {name: raw[name] for name in ("target_modules", "modules_to_save", "task_type")}
        same = peft.LoraConfig(r=4, **config)
        made = get_peft_model_state_dict(peft.get_peft_model(type(base)(base.config), same))
        # A bare class of theirs makes a pooler that the file has no weights for.
        expected = {name for name in made if task != "embed" or "pooler" not in name}
        assert set(load_file(folder / "adapter_model.safetensors")) == expected
    else:
        theirs = class_of(folder).from_pretrained(folder)
    assert_close(answers(model, words), answers(theirs, words), f"{family} {task}")
    if task != "text" or KINDS[family] == "decoder":
        judged = [] if task == "text" else [f"--task={task}"]
        status, _, said = run("evaluate", str(tmp_path / "run"), f"--data={data}", *judged, "--limit=8", "--device=cpu")
        assert status == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("family", hf_models.FAMILIES)
def test_a_task_that_does_not_fit_is_refused(family: str, bases: Bases, tmp_path: Path) -> None:
    for task in ("chat", "preference", "seq2seq", "classify", "tag"):
        if not fits(family, task):
            status, said, _ = tune(bases(family), tmp_path, task, lora=False)
            assert status == 2, said
            assert re.search(r"^anyformer: (The task|Sources and targets|Model type) [^\n]*\.\n\Z", said, re.M), said


LOOKS: Mapping[str, list[str]] = {
    "show": ["{base}"],
    "plan": ["{base}", "--context=16", "--batch-size=2", "--device=cpu", "--no-calibrate"],
    "diff": ["{base}", "llama"],
    "diagram": ["{base}", "--output={new}.svg"],
    "attention": ["{base}", "the cat sat", "--output={new}.html"],
    "verify": ["{base}"],
    "eject": ["{base}", "--output={new}.py"],
    "explain": ["{base}", "--output={new}.html"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", LOOKS)
@pytest.mark.parametrize("family", hf_models.FAMILIES)
def test_a_model_is_looked_into(family: str, command: str, bases: Bases, tmp_path: Path) -> None:
    """Or, by `eject` and `explain`, refused with the field that they don't know."""
    status, out, said = run(
        command, *(part.format(base=bases(family), new=tmp_path / "new") for part in LOOKS[command])
    )
    if status == 2 and command in ("eject", "explain"):
        assert re.fullmatch(r"anyformer: [a-z_.]+ is [^\n]*\.\n", said), said
    else:
        assert (status, bool(out)) == (0, True), said


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in hf_models.FAMILIES if KINDS[name] != "encoder"])
def test_greedy_text(family: str, bases: Bases) -> None:
    """Equal to transformers' as stored, and written from integers: compiled, or with a sentence why not."""
    base = bases(family)
    theirs, (model, words) = class_of(base).from_pretrained(base).eval(), af.load(base)
    assert words is not None
    ids = torch.tensor([encode_prompt(model, words, TEXT)])
    greedy = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, "use_cache": caches_rightly(theirs)}
    expected = theirs.generate(ids, **greedy)[0]
    found = af.generate_ids(model, ids, max_new_tokens=12)[0]
    assert found.tolist() == expected[1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()
    for flags in ([], ["--quantize=int8"], ["--quantize=int4"]):
        status, out, said = run("generate", str(base), TEXT, "--max-new-tokens=12", "--device=cpu", *flags)
        assert status == 0, said
        assert flags or words.decode(found.tolist()) in out


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in hf_models.FAMILIES if KINDS[name] == "encoder"])
def test_masks_and_vectors(family: str, bases: Bases) -> None:
    for flags in ([], ["--quantize=int8"], ["--quantize=int4"]):
        for command, texts in (("fill", ["the [MASK] sat"]), ("embed", ["the cat", "a dog"])):
            status, out, said = run(command, str(bases(family)), *texts, "--device=cpu", *flags)
            assert (status, bool(out)) == (0, True), said
