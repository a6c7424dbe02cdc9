"""lm-eval's clients of a running server score as our own class for lm-eval does in one process."""

from __future__ import annotations

import json
import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from tests.serving.running import TEMPLATE, running

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
pytest.importorskip("tenacity", reason="the clients of lm-eval are not installed (lm_eval[api])")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of lm-eval and what it imports

WORDS = "the cat sat on the mat and the dog ran after it because it was a dog.\nQuestion: who ran? Answer: the dog "
LONGEST = 40

Pair = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    """Our class, and lm-eval's two clients of the same model, which often ends a text at once."""
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    from anyformer.evaluation.harness import AnyformerLM

    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = af.Tokenizer.train([WORDS * 20], "bpe:300")
    tokenizer.chat_template = TEMPLATE
    config = af.preset("llama-nano", vocab_size=tokenizer.vocab_size, d_model=32, max_length=LONGEST)
    model = af.build(config.replace(special_tokens={"eos": (tokenizer.eos,)}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that answers differ by more than rounding
    af.save(model, directory, tokenizer=tokenizer)
    with running({"nano": (model, tokenizer)}) as (client, _):
        common: dict[str, Any] = {"model": "nano", "max_length": LONGEST, "tokenizer": str(directory)}
        url = f"{str(client.base_url).rstrip('/')}/v1"
        texts = LocalCompletionsAPI(base_url=f"{url}/completions", batch_size=3, **common)
        chats = LocalChatCompletion(base_url=f"{url}/chat/completions", eos_string="<|endoftext|>", **common)
        # lm-eval keeps one token of the length for the answer, and one more in windows.
        yield AnyformerLM(model, tokenizer, max_length=LONGEST - 2), texts, chats


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def test_log_likelihoods(pair: Pair) -> None:
    chance, words = random.Random(0), WORDS.split()
    asked = [
        (" ".join(chance.choices(words, k=length)), "".join(f" {word}" for word in chance.choices(words, k=1 + number)))
        for length in range(0, 30, 3)
        for number in range(4)
    ]
    found, wanted = (lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True) for lm in pair[:2])
    assert [each[0] for each in found] == pytest.approx([each[0] for each in wanted], abs=1e-3)
    assert [each[1] for each in found] == [each[1] for each in wanted]


def test_texts_longer_than_the_context(pair: Pair) -> None:
    asked = [(WORDS * count,) for count in (1, 3)] + [("the",), (" ",)]
    found, wanted = (
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", asked), disable_tqdm=True) for lm in pair[:2]
    )
    assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("until", [["\n"], [" the", "dog"], []])
def test_texts(pair: Pair, until: list[str]) -> None:
    settings = {"until": until, "max_gen_toks": 9, "do_sample": False}
    asked = [(context, settings) for context in ("the cat sat", "Question: who", "the dog ran after it")]
    found, wanted = (lm.generate_until(instances("generate_until", asked), disable_tqdm=True) for lm in pair[:2])
    assert found == wanted
    assert any(found)
    ours, _, chats = pair
    turns = [[{"role": "user", "content": text}] for text, _ in asked]
    said = [[(lm.apply_chat_template(turn), settings) for turn in turns] for lm in (ours, chats)]
    found, wanted = (
        lm.generate_until(instances("generate_until", each), disable_tqdm=True)
        for lm, each in zip((ours, chats), said, strict=True)
    )
    assert found == wanted


TASKS = {
    "choice": 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    "metric_list: [{metric: acc}, {metric: acc_norm}]",
    "rolling": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{question}}"\n'
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]",
    "written": "output_type: generate_until\ndoc_to_target: target\ngeneration_kwargs: {until: [x], max_gen_toks: 7}\n"
    "metric_list: [{metric: exact_match}]",
}


def test_tasks(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    chance = random.Random(1)
    ask = [(WORDS[start : start + 20], {"until": ["x"], "max_gen_toks": 7}) for start in range(12)]
    targets = pair[0].generate_until(instances("generate_until", ask[::2]), disable_tqdm=True)
    rows = [
        {
            "question": text,
            "choices": [f" {word}" for word in chance.sample(["cat sat", "dog.", "mat", "was a"], 3)],
            "answer": number % 3,
            "target": targets[number // 2] if number % 2 == 0 else "nothing",
        }
        for number, (text, _) in enumerate(ask)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, rest in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}"
        asked = "" if name == "rolling" else "{{question}}"
        more = f'test_split: test\ntarget_delimiter: ""\ndoc_to_text: "{asked}"\n{rest}\n'
        (tmp_path / f"{name}.yaml").write_text(f"{head}\n{more}")
    keywords: Any = {
        "tasks": [str(tmp_path / f"{name}.yaml") for name in TASKS],
        "task_manager": TaskManager(include_defaults=False),
        "bootstrap_iters": 0,
    }
    found, wanted = (lm_eval.simple_evaluate(lm, **keywords)["results"] for lm in pair[:2])
    assert set(found) == set(TASKS)
    for name, metrics in wanted.items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                assert found[name][metric] == pytest.approx(value, rel=1e-4, abs=1e-3), (name, metric)
    assert wanted["written"]["exact_match,none"] >= 0.5
