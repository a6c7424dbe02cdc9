"""The model class for lm-eval, against lm-eval's own `hf` model on the same weights."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

WORDS = "the cat sat on the mat and the dog ran after it because it was a dog.\nQuestion: who ran? Answer: the dog "


def _save(directory: Path, preset: str, special: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([WORDS * 20], "bpe:300", special=special)
    sizes: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "d_model": 32, "max_length": 24}
    config = af.preset(preset, **sizes, decoder_layers=2, attention={"heads": 4})
    tokens = {"eos": (tokenizer.eos,), "pad": tokenizer.pad, "bos": tokenizer.bos}
    if config.is_encoder_decoder:
        # lm-eval ties the weights of every T5, whatever its config says.
        config = config.replace(encoder_layers=2, embedding={"tied": True}, head={"scaled": True})
        tokens |= {"decoder_start": tokenizer.pad}
    model = af.build(config.replace(special_tokens=tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that answers differ by more than rounding
    af.save(model, directory, tokenizer=tokenizer)
    return directory


@pytest.fixture(scope="module", params=["llama-nano", "gpt2-nano", "t5-nano"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and lm-eval's model of the same directory."""
    from lm_eval.models.huggingface import HFLM

    from anyformer.evaluation.harness import AnyformerLM

    name = request.param
    directory = _save(tmp_path_factory.mktemp(name), name, "seq2seq" if name == "t5-nano" else "causal")
    theirs = HFLM(str(directory), device="cpu", batch_size=3, dtype="float32", max_length=24)
    return AnyformerLM(str(directory), max_length=24), theirs


def _instances(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


TEXT = st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join)
CONTEXT = st.tuples(TEXT, st.sampled_from(["", " ", "  ", "\n"])).map(lambda parts: "".join(parts) if parts[0] else "")
PARTS = [" the", " dog", " a", " cat.", "Q", " was"]
CONTINUATION = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join)


@pytest.fixture(scope="module")
def exact(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """The same in float64, where rounding can't hide a mistake, nor be taken for one."""
    ours, theirs = copy.copy(pair[0]), copy.copy(pair[1])
    ours.model, theirs._model = copy.deepcopy(ours.model).double(), copy.deepcopy(theirs.model).double()
    for module in theirs.model.modules():
        if type(module).__name__ in ("T5LayerNorm", "LlamaRMSNorm"):  # their norms are float32 whatever the model is
            module.forward = partial(_rms_norm, module)
    return ours, theirs


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _log_likelihoods(pair: tuple[Any, Any], asked: list[tuple[str, str]]) -> tuple[Any, Any]:
    if pair[0].backend == "seq2seq":
        asked = [(context or "the", choice) for context, choice in asked]  # hf fails on an empty source
    found, wanted = (lm.loglikelihood(_instances("loglikelihood", asked), disable_tqdm=True) for lm in pair)
    assert [each[1] for each in found] == [each[1] for each in wanted]
    return [each[0] for each in found], [each[0] for each in wanted]


@given(st.lists(st.tuples(CONTEXT, CONTINUATION), min_size=1, max_size=8), st.lists(CONTINUATION, max_size=3))
@settings(max_examples=20, deadline=None)
def test_log_likelihoods_are_those_of_hf(
    exact: tuple[Any, Any], asked: list[tuple[str, str]], choices: list[str]
) -> None:
    """Empty contexts, contexts that are too long, spaces at their ends, and contexts with several choices."""
    found, wanted = _log_likelihoods(exact, asked + [(asked[0][0], choice) for choice in choices])
    assert found == pytest.approx(wanted, rel=0, abs=1e-5)


def test_log_likelihoods_are_those_of_hf_in_float32(pair: tuple[Any, Any]) -> None:
    chance = random.Random(0)
    asked = [
        (" ".join(chance.choices(WORDS.split(), k=chance.randint(0, 12))), "".join(chance.choices(PARTS, k=length)))
        for length in [1, 2, 3, 4, 5] * 20
    ]
    found, wanted = _log_likelihoods(pair, asked)
    assert found == pytest.approx(wanted, rel=0, abs=1e-4)


def test_a_context_of_spaces_is_empty(pair: tuple[Any, Any]) -> None:
    """There hf fails."""
    first, second = pair[0].loglikelihood(_instances("loglikelihood", [("  ", "the"), ("", "  the")]), True)
    assert first == second


def test_texts_longer_than_the_context_are_those_of_hf(pair: tuple[Any, Any]) -> None:
    if pair[0].backend == "seq2seq":
        pytest.skip("lm-eval's rolling windows are for decoders")
    asked = [(WORDS * count,) for count in (1, 3)] + [("the",), (" ",)]
    found, wanted = (lm.loglikelihood_rolling(_instances("loglikelihood_rolling", asked), True) for lm in pair)
    assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("until", [["\n"], [" the", "dog"], []])
def test_texts_are_those_of_hf(pair: tuple[Any, Any], until: list[str]) -> None:
    if pair[0].backend == "seq2seq":
        pytest.skip("lm-eval generates as many tokens more as the source has")
    asked = [
        (context, {"until": until, "max_gen_toks": new, "do_sample": False})
        for context in ("the cat sat", "Question: who", "the dog ran after " * 6)
        for new in (1, 6)
    ]
    found, wanted = (lm.generate_until(_instances("generate_until", asked), disable_tqdm=True) for lm in pair)
    assert found == wanted
    assert any(found)


def test_settings_that_mean_nothing_here_are_refused(pair: tuple[Any, Any]) -> None:
    asked = [("the", {"until": [], "max_gen_toks": 3, "num_beams": 4})]
    with pytest.raises(UserError, match="not supported: num_beams"):
        pair[0].generate_until(_instances("generate_until", asked), disable_tqdm=True)
    asked = [("the", {"until": [], "max_gen_toks": 3, "do_sample": True, "temperature": 0.7, "top_k": 3})]
    assert len(pair[0].generate_until(_instances("generate_until", asked), disable_tqdm=True)) == 1


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [
        {"question": "the cat", "choices": [" sat on the mat", " ran after", " was a dog"], "answer": index % 3}
        for index in range(7)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "cats.yaml"
    path.write_text(
        f"""task: cats
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
    )
    return path


def test_a_task_of_ones_own(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from anyformer.evaluation.harness import run_suite

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    directory = _save(tmp_path / "model", "llama-nano", "causal")
    model, tokenizer = af.load(directory)
    results = run_suite(model, tokenizer, [str(task)], limit=5)
    assert results["cats"]["samples"] == 5
    keywords: Any = {"tasks": [str(task)], "limit": 5, "task_manager": TaskManager(include_defaults=False)}
    by_name: Any = lm_eval.simple_evaluate("anyformer", f"pretrained={directory}", **keywords)
    theirs: Any = lm_eval.simple_evaluate("hf", f"pretrained={directory},dtype=float32", device="cpu", **keywords)
    for metric in ("acc,none", "acc_norm,none"):
        wanted = theirs["results"]["cats"][metric]
        assert results["cats"][metric] == by_name["results"]["cats"][metric] == pytest.approx(wanted)


def test_what_a_suite_refuses(tmp_path: Path) -> None:
    from anyformer.evaluation.harness import run_suite

    model, tokenizer = af.load(_save(tmp_path / "model", "llama-nano", "causal"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: missing.jsonl}\n")
    with pytest.raises(UserError, match=r"lm-eval can't run .*broken\.yaml"):
        run_suite(model, tokenizer, [str(broken)])
    encoder = af.build(af.preset("bert-tiny", vocab_size=50))
    with pytest.raises(UserError, match="doesn't write"):
        run_suite(encoder, tokenizer, [str(broken)])
    with pytest.raises(UserError, match="without a tokenizer"):
        run_suite(model, None, [str(broken)])


@pytest.mark.slow
def test_unknown_tasks_are_named(tmp_path: Path) -> None:
    from anyformer.evaluation.harness import run_suite

    model, tokenizer = af.load(_save(tmp_path / "model", "llama-nano", "causal"))
    with pytest.raises(UserError, match="no task 'piqqa', nor is it a YAML file: did you mean 'piqa'"):
        run_suite(model, tokenizer, ["piqqa"])
