"""Several adapters and their model share a batch, and each says what it says alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import adapters
from anyformer.checkpoint.adapter_directory import load_adapter
from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.quantization import quantize
from anyformer.serving.serve import make_server
from tests.serving.running import running, small_models

WORDS = "the cat sat on the mat, the cat sat"
"""Long enough for its beginning to be shared."""


def saved(directory: Path, number: int, **changes: Any) -> Path:
    """The directory of an adapter of the small decoder."""
    model, _ = small_models()["gpt"]
    add_adapter(model, LoraConfig(rank=number, **changes))
    torch.manual_seed(number)
    for each in adapters(model):
        torch.nn.init.normal_(each.b, std=0.7)
    af.save_adapter(model, directory)
    return directory


@pytest.mark.parametrize("kind", [None, "int8"])
def test_each_text_is_that_of_its_adapter(tmp_path: Path, kind: str | None) -> None:
    places = {"a/1.5": saved(tmp_path / "a", 2), "b": saved(tmp_path / "b", 3, use_dora=True)}
    alone, asked = dict[str, Any](), [(name, seed) for seed in (None, 3) for name in ("gpt", "a/1.5", "b")]
    models = small_models()
    _, tokenizer = models["gpt"]
    assert tokenizer is not None
    for name in ("gpt", *places):
        alone[name], _ = small_models()["gpt"]
        if kind is not None:
            quantize(alone[name], kind)
        if name != "gpt":
            load_adapter(alone[name], places[name])
    if kind is not None:
        quantize(models["gpt"][0], kind)
    with running(models, adapters={"gpt": places}, slots=4) as (client, server), ThreadPoolExecutor(6) as pool:

        def ask(name: str, seed: int | None) -> str:
            sampling = {"temperature": 0} if seed is None else {"temperature": 0.7, "seed": seed}
            body = {"model": name, "prompt": WORDS, "max_tokens": 12, "ignore_eos": True, **sampling}
            return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

        texts = dict(zip(asked * 3, pool.map(ask, *zip(*asked * 3, strict=True)), strict=True))
        for (name, seed), text in texts.items():
            options: Any = {} if seed is None else {"temperature": 0.7, "seed": seed}
            expected = af.generate(alone[name], tokenizer, [WORDS], max_new_tokens=12, stop_at_eos=False, **options)
            assert text == expected[0], (name, seed)
        assert len(set(texts.values())) == len(texts)
        listed = {each["id"]: each.get("parent") for each in client.get("/v1/models").json()["data"]}
        assert listed == {"gpt": None, "a/1.5": "gpt", "b": "gpt", "bert": None}
        body = {"model": "b", "prompt": WORDS, "max_tokens": 0, "echo": True, "logprobs": 0}
        scores = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
        ids = torch.tensor([tokenizer.encode(WORDS)])
        with torch.no_grad():
            logits = alone["b"](ids).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(scores[1:]), expected, rtol=0.02 if kind else 1e-4, atol=1e-2)
        vector = client.post("/v1/embeddings", json={"model": "b", "input": WORDS}).json()["data"][0]["embedding"]
        torch.testing.assert_close(torch.tensor(vector), af.embed(alone["b"], tokenizer, [WORDS])[0])
        assert server.models["b"].worker is server.models["gpt"].worker


def test_an_adapter_that_replaces_weights_is_not_beside_its_model(tmp_path: Path) -> None:
    place = saved(tmp_path / "a", 2, bias="all")
    with pytest.raises(UserError, match="replaces"), running(small_models(), adapters={"gpt": {"a": place}}):
        pass


def test_an_adapter_of_positions_is_not_beside_its_model(tmp_path: Path) -> None:
    """A batch has one vector for each place."""
    model, other = (af.build(af.preset("gpt2-nano", vocab_size=20, d_model=16, decoder_layers=1)) for _ in range(2))
    af.save_adapter(add_adapter(model, LoraConfig(rank=2, target_modules=("wte", "wpe", "c_attn"))), tmp_path)
    with pytest.raises(UserError, match=r"adapts transformer\.wpe, which all texts share"):
        load_adapter(other, tmp_path, beside=True)
    assert not other.adapter_configs
    assert load_adapter(other, tmp_path).adapter_configs


def test_an_adapter_takes_no_models_name(tmp_path: Path) -> None:
    models = small_models()
    with pytest.raises(UserError, match="An adapter has the name 'bert' of another or of a model"):
        make_server(models, adapters={"gpt": {"bert": saved(tmp_path / "a", 2)}})


def test_names_of_adapters_and_models_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"a={tmp_path}", "--adapter", f"a={tmp_path}"]) == 2
    assert "Two models have the name a" in capsys.readouterr().err
