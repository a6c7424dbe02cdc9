"""KerasHub opens what is saved here, by the recipe in docs/keras.md, and gives the same logits."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

import anyformer as af

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None, reason="keras-hub is not installed"),
]

PAGE = Path(__file__).parents[2] / "docs" / "keras.md"
TEXT = ["the cat sat on the mat", "a dog and a cat", "Paris is the capital of France."]
UNSEEN = ["The cat sat, on 12 mats.", "naïve façade", "dogs' and cats'"]
DRAWN = 4

_COMPARE = """
import sys
import numpy as np

def inputs(directory):
    given = {name: np.load(f"{directory}/{name}.npy") for name in ("token_ids", "padding_mask")}
    if "bert" in str(directory):
        given["segment_ids"] = np.zeros_like(given["token_ids"])
    return given

results = {}
for directory in sys.argv[1:]:
    given = inputs(directory)
    if "gpt2" in directory:
        results["logits"] = open_gpt2(directory)(given)
    elif "llama" in directory:
        results["logits"] = open_llama(directory)(given)
    else:
        results = {f"bare {name}": each for name, each in open_bert(f"{directory}/encoder")(given).items()}
        rows, length = given["token_ids"].shape
        given["mask_positions"] = np.tile(np.arange(length, dtype="int32"), (rows, 1))
        results["logits"] = open_masked_bert(directory, f"{directory}/encoder")(given)
    for name, result in results.items():
        np.save(f"{directory}/{name}.theirs.npy", np.asarray(result))
    ids = {"exact": [encode(directory, text) for text in UNSEEN]}
    if "llama" not in directory:
        kind = keras_hub.models.GPT2Tokenizer if "gpt2" in directory else keras_hub.models.BertTokenizer
        ids["own"] = [np.asarray(kind.from_preset(directory)(text)).tolist() for text in UNSEEN]
    Path(directory, "theirs.json").write_text(json.dumps(ids))
"""


def _blocks(title: str) -> str:
    return "\n".join(
        re.findall(
            rf"^```python title=\"{title}\"\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
    )


def _sizes(chance: random.Random) -> dict[str, Any]:
    heads = chance.choice([1, 2, 4])
    return {"d_model": heads * chance.choice([4, 8, 16]), "attention": {"heads": heads}}


def _config(family: str, tokenizer: af.Tokenizer, chance: random.Random) -> af.ModelConfig:
    sizes, layers = _sizes(chance), chance.randint(1, 3)
    special = {"bos": tokenizer.bos, "eos": () if tokenizer.eos is None else (tokenizer.eos,), "pad": tokenizer.pad}
    common = {"vocab_size": tokenizer.vocab_size, "max_length": 48, "special_tokens": special, **sizes}
    wide = {"width": 4 * sizes["d_model"]}
    if family == "gpt2":
        return af.preset("gpt2", decoder_layers=layers, feed_forward=wide, **common)
    if family == "llama":
        heads = sizes["attention"]["heads"]
        common["attention"] = {"heads": heads, "kv_heads": chance.choice([1, heads])}
        eps, theta = chance.choice([1e-6, 1e-5, 1e-3]), chance.choice([1e4, 5e5])
        changes = {"norm": {"eps": eps}, "embedding": {"tied": chance.random() < 0.5}, "position": {"theta": theta}}
        width = {"width": chance.randint(8, 90)}
        return af.preset("llama-nano", decoder_layers=layers, feed_forward=width, **common, **changes)
    act = chance.choice(["gelu", "gelu_tanh"])
    changes = {"feed_forward": {"activation": act, "width": chance.randint(8, 90)}, "head": {"transform": act}}
    return af.preset("bert-tiny", encoder_layers=layers, **common, **changes)


def _tokenizer(family: str) -> af.Tokenizer:
    if family == "bert":
        return af.Tokenizer.train(TEXT, "wordpiece:120", special="masked", lowercase=True)
    trained = af.Tokenizer.train(TEXT, "bpe:300")
    if family == "llama":
        return trained
    trained.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained


def _save(family: str, directory: Path, chance: random.Random) -> dict[str, np.ndarray[Any, Any]]:
    """Write a drawn model and its inputs; returns what it answers, and the mask."""
    tokenizer = _tokenizer(family)
    model = af.build(_config(family, tokenizer, chance)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    assert af.save(model, directory, tokenizer=tokenizer) == family
    lengths = torch.tensor([17, chance.randint(1, 16)])
    mask = torch.arange(17)[None] < lengths[:, None]
    ids = torch.randint(model.config.vocab_size, (2, 17)) * mask
    np.save(directory / "token_ids.npy", ids.numpy().astype("int32"))
    np.save(directory / "padding_mask.npy", mask.numpy().astype("int32"))
    with torch.inference_mode():
        answers = {"mask": mask.numpy(), "logits": model(ids, mask=mask).logits.numpy()}
        if family == "bert":
            names: dict[str, Any] = {}
            exec(_blocks("in anyformer"), names)
            names["save_for_keras"](directory, directory / "encoder")
            out = af.load(directory / "encoder")[0](ids, mask=mask)
            answers |= {"bare sequence_output": out.hidden.numpy(), "bare pooled_output": out.pooled.numpy()}
    return answers


def test_keras_hub_gives_the_same_logits(tmp_path: Path) -> None:
    chance = random.Random(0)
    torch.manual_seed(0)
    expected = {}
    for family in ("gpt2", "llama", "bert"):
        for number in range(DRAWN):
            directory = tmp_path / f"{family}-{number}"
            expected[directory] = _save(family, directory, chance)
    code = f"{_blocks('in Keras')}\nUNSEEN = {UNSEEN!r}\n{_COMPARE}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, expected)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for directory, answers in expected.items():
        mask = answers.pop("mask")
        for name, ours in answers.items():
            theirs = np.load(directory / f"{name}.theirs.npy")
            if name != "bare pooled_output":
                theirs, ours = theirs[mask], ours[mask]
            assert np.abs(theirs - ours).max() <= 1e-4 * np.abs(ours).max(), f"{directory.name}: {name}"
        tokenizer = af.Tokenizer.load(directory)
        ids = json.loads((directory / "theirs.json").read_text())
        assert ids["exact"] == [tokenizer.encode(text) for text in UNSEEN]
        if "own" in ids:
            ours = [tokenizer.encode(text, special=False) for text in UNSEEN]
            # KerasHub's BERT keeps the accents that BERT strips.
            same = [text.isascii() or "gpt2" in directory.name for text in UNSEEN]
            assert list(compress(ids["own"], same)) == list(compress(ours, same))
