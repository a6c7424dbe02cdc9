"""A directory in the place of a model and its tokenizer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.errors import UserError
from tests.evaluation.models import decoder, encoder


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
    with pytest.raises(UserError, match="There is no data at 'xxx"):
        af.evaluate(*af.load(directories["classify"]), "x" * 5000)
