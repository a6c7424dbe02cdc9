"""Gemma 3 in files that hold more than a decoder of texts: with a vision tower, and as an encoder."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.oracle import needs_newer_transformers
from tests.parity import hf_models
from tests.parity.conversion import assert_close
from tests.parity.model_spec import randomize
from tests.parity.test_forward import assert_same

import anyformer as af

_TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _as_published(folder: Path) -> None:
    """Rename the weights to what the published files call them."""
    path = folder / "model.safetensors"
    renamed = {
        name.replace("model.language_model.", "language_model.model.").replace("model.vision", "vision"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(renamed, path, metadata={"format": "pt"})


@pytest.mark.parametrize("published", [False, True])
def test_of_a_model_of_texts_and_images_the_text_model_is_read(
    published: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.Gemma3Config(text_config=_TEXT, vision_config=_VISION, mm_tokens_per_image=4)
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    randomize(theirs, 0)
    theirs.save_pretrained(tmp_path / "theirs")
    if published:
        _as_published(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING, "anyformer"):
        ours, _ = af.load(tmp_path / "theirs")
    assert "vision tower" in caplog.text
    ids = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = ours(ids).logits
        assert_close(logits, theirs(ids).logits, "logits")
        assert af.save(ours, tmp_path / "ours") == "gemma3_text"
        again = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "ours").eval()
        assert_close(logits, again(ids).logits, "logits")


def test_a_model_without_text_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(af.UserError, match="text_config"):
        af.load(tmp_path)


@needs_newer_transformers
@settings(max_examples=15)
@given(data=st.data())
def test_an_encoder_equals(data: st.DataObject) -> None:
    """EmbeddingGemma: windows on both sides."""
    drawn = data.draw(hf_models.models("Gemma3TextModel"))
    drawn.options["use_bidirectional_attention"] = True
    assert_same(data, drawn)


@needs_newer_transformers
def test_an_encoder_comes_back(tmp_path: Path) -> None:
    options = {**_TEXT, "use_bidirectional_attention": True, "pad_token_id": 0}
    theirs = transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**options)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = af.load(tmp_path / "theirs")
    assert ours.config.is_encoder_only
    assert ours.config.other_layers is not None
    assert ours.config.other_layers.window == 3
    ours.origin = type(ours.origin)()
    assert af.save(ours, tmp_path / "ours") == "gemma3_text"
    again = transformers.Gemma3TextModel.from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(60, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(again(ids).last_hidden_state, theirs(ids).last_hidden_state, "hidden states")
