"""GGUF files of every architecture: the logits of the model that they were made of, here and in transformers."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyformer as af
from anyformer.checkpoint.gguf.architectures import table, to_gguf
from anyformer.checkpoint.gguf.container import Container
from anyformer.checkpoint.gguf.contents import rope_factors
from anyformer.checkpoint.gguf.source import read_config
from anyformer.config import diff
from anyformer.families import preset
from anyformer.families.rows import COPY
from anyformer.model import skeleton
from tests.parity import gguf_files
from tests.parity.conversion import assert_close, ours_of
from tests.parity.model_spec import ModelSpec


def _inputs(drawn: ModelSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(drawn.vocab_size, (2, 9), generator=generator)
    return (
        {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)} if drawn.kind == "seq2seq" else {"input_ids": tokens}
    )


def _theirs(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        output = model(**inputs)
    return output.logits if "logits" in output else output.last_hidden_state


def _ours(model: af.Transformer, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        if "decoder_input_ids" in inputs:
            output = model(inputs["decoder_input_ids"], source=inputs["input_ids"])
        else:
            output = model(inputs["input_ids"])
    return output.hidden if output.logits is None else output.logits


def _proof(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(gguf_files.models(architecture))
    theirs = drawn.build()
    inputs = _inputs(drawn, drawn.seed)
    expected = _theirs(theirs, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = gguf_files.write(theirs, Path(folder) / "model.gguf")
        model, tokenizer = af.load(path)
        assert tokenizer is None
        assert_close(_ours(model, inputs), expected, "logits here")
        saved = Path(folder) / "saved"
        af.save(model, saved)
        kind = {"DistilBertModel": transformers.DistilBertModel}.get(architecture, transformers.AutoModel)
        if drawn.has_head:
            kind = transformers.AutoModelForSeq2SeqLM if drawn.kind == "seq2seq" else transformers.AutoModelForCausalLM
        assert_close(
            _theirs(kind.from_pretrained(saved).eval(), inputs), expected, "logits of what was saved, in transformers"
        )
        assert_close(_ours(af.load(saved)[0], inputs), expected, "logits of what was saved")


@pytest.mark.parametrize("architecture", gguf_files.ARCHITECTURES)
@settings(max_examples=5)
@given(data=st.data())
def test_logits_from_gguf_and_back(architecture: str, data: st.DataObject) -> None:
    _proof(architecture, data)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", gguf_files.ARCHITECTURES)
@settings(max_examples=100)
@given(data=st.data())
def test_logits_from_gguf_over_many_configs(architecture: str, data: st.DataObject) -> None:
    _proof(architecture, data)


@pytest.mark.parametrize("architecture", gguf_files.ARCHITECTURES)
@settings(max_examples=10)
@given(data=st.data())
def test_metadata_and_names_in_both_directions(architecture: str, data: st.DataObject) -> None:
    """What we would write of a model is what a converter writes, and reads back as the same config."""
    theirs = data.draw(gguf_files.models(architecture)).build()
    config = ours_of(theirs).config
    if config.is_encoder_only:
        config = config.replace(head={"pooler": None}, pooling={"kind": "first"})
    with tempfile.TemporaryDirectory() as folder:
        container = Container(gguf_files.write(theirs, Path(folder) / "model.gguf"))
        kind, metadata = to_gguf(config)
        for key, value in metadata.items():
            if key in container.metadata:
                assert container.metadata[key] == pytest.approx(value), key
        missing = {key for key in container.metadata if not key.startswith("GGUF.")} - set(metadata)
        assert not missing
        rows = table(kind, config, skeleton(config).state_dict())
        written = {name for name, line in rows.items() if not line.alias or line.operation is not COPY}
        written |= {"rope_freqs.weight"} if rope_factors(config) else set()
        assert written == set(container.tensors)
        if factors := rope_factors(config):
            stored = container.blocks("rope_freqs.weight").view("<f4")
            assert np.allclose(stored, factors, rtol=1e-5)
        assert set(diff(read_config(container), config)) <= IRRELEVANT | {
            name for name in diff(read_config(container), config) if name.startswith("position.scaling.")
        }


IRRELEVANT = {
    "attention.dropout",
    "attention.head_dim",
    "dropout",
    "embedding.dropout",
    "embedding.padding",
    "feed_forward.dropout",
    "head.dropout",
    "init.kind",
    "init.std",
    "init.scale_residual",
    "special_tokens.bos",
    "special_tokens.eos",
    "special_tokens.pad",
    "special_tokens.decoder_start",
}
"""What a GGUF file without a tokenizer does not say."""

REFUSED = {
    "a window": (preset("mistral-7b"), "attention.window = 4096"),
    "an activation": (preset("llama-3.2-1b", feed_forward={"activation": "gelu"}), "feed_forward.activation = 'gelu'"),
    "a scale": (preset("gpt2", attention={"scale_by_layer": True}), "attention.scale_by_layer"),
    "a masked-LM head": (preset("bert-base"), "a head of kind 'language_model'"),
    "a pooler": (
        preset("bert-base", head={"kind": "none", "pooler": "tanh", "bias": "none", "transform": None}),
        "no place for the weight pooler",
    ),
    "distances": (preset("t5-small", position={"max_distance": 64}), "position.max_distance = 64"),
    "the 2017 model": (preset("transformer-base"), "no architecture"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gguf_cannot_express_is_refused(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(af.UserError, match=message):
        to_gguf(config)
