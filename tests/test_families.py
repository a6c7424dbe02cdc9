"""The nearest supported type of a config.json whose type is not supported."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from anyformer.cli.main import main
from anyformer.errors import UserError
from anyformer.families import FAMILIES, from_huggingface


def config(model_type: str, architecture: str) -> dict[str, Any]:
    """The defaults of a type of Hugging Face's."""
    return {**CONFIG_MAPPING[model_type]().to_dict(), "model_type": model_type, "architectures": [architecture]}


@pytest.mark.parametrize(
    ("model_type", "architecture", "nearest", "lacking"),
    [
        ("gptj", "GPTJForCausalLM", "gpt2", "'rotary_dim'"),
        ("longformer", "LongformerForMaskedLM", "bert", "'attention_window', 'sep_token_id'"),
        ("vit", "ViTModel", "bert", "'image_size', 'patch_size', 'num_channels', 'qkv_bias' and 3 more"),
        ("led", "LEDForConditionalGeneration", "bart", "'max_encoder_position_embeddings'"),
    ],
)
def test_the_nearest_is_the_one_that_knows_most_fields(
    model_type: str, architecture: str, nearest: str, lacking: str
) -> None:
    start = f"The model type '{model_type}' is not supported; the nearest here is '{nearest}', which does not know "
    with pytest.raises(UserError) as error:
        from_huggingface(config(model_type, architecture))
    assert str(error.value).startswith(start + lacking)


@pytest.mark.parametrize("model_type", ["llama", "bert", "bart"])
def test_a_type_under_another_name_is_found(model_type: str) -> None:
    raw = config(model_type, next(iter(FAMILIES[model_type].architectures))) | {"model_type": "mine"}
    sentence = f"the nearest here is '{model_type}', which knows all its fields: what differs is in its code"
    with pytest.raises(UserError, match=sentence):
        from_huggingface(raw)


@pytest.mark.parametrize("value", [{}, [], "x", -1, 1e308, 10**400, {"a": [None]}])
def test_fields_that_are_misshapen_still_name_a_type(value: Any) -> None:
    raw = {name: value or [value] for name in config("llama", "LlamaForCausalLM")}
    with pytest.raises(UserError, match="The model type 'mine' is not supported; the nearest here is '"):
        from_huggingface(raw | {"model_type": "mine", "x" * 10**4: value or [value]})


def test_show_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("gptj", "GPTJForCausalLM")))
    assert main(["show", str(tmp_path)]) == 2
    assert "the nearest here is 'gpt2', which does not know 'rotary_dim'." in capsys.readouterr().err
