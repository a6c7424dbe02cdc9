"""Directories that version 0.1 wrote in our own format load, and are saved with the names of today."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer.kernels.cpu_features import SWITCH
from anyformer.model import Transformer

DIRECTORIES = Path(__file__).parent / "version_0_1"


def _logits(model: Transformer, expected: dict[str, torch.Tensor]) -> torch.Tensor:
    source = expected["source"] if model.config.is_encoder_decoder else None
    with torch.inference_mode():
        logits = model(expected["tokens"], source=source).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("name", ["own", "own_int4", "int8", "int4"])
def test_they_load_and_are_saved_with_the_names_of_today(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    expected = load_file(DIRECTORIES / name / "expected.safetensors")
    model, _ = af.load(DIRECTORIES / name)
    torch.testing.assert_close(_logits(model, expected), expected["logits"], rtol=1e-5, atol=1e-5)
    if name == "own":
        assert model.config.special_tokens.decoder_start == 2
    af.save(model, tmp_path)
    again, _ = af.load(tmp_path)
    assert again.config == model.config
    assert torch.equal(_logits(again, expected), _logits(model, expected))
    assert not any(
        weight.startswith(("tokens.", "source_tokens.")) for weight in load_file(tmp_path / "model.safetensors")
    )
    assert "tokens" not in json.loads((tmp_path / "config.json").read_text()).get("config", {})
