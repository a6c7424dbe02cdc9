"""Special tokens, wherever a directory declares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from anyformer.tokenizer import Tokenizer
from tests.oracle import needs_newer_transformers
from tests.tokenizer.hugging_face import CORPUS, SAMPLES, assert_same, llama_like


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
        pytest.param(
            {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            marks=needs_newer_transformers,
        ),
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": True, "special": True},
            "eos_token": "<|im_end|>",
            "add_bos_token": False,
            "model_max_length": 1e30,
        },
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                "379": {"content": "<|b|>", "special": False, "normalized": False},
                "382": {"content": "<|a|>", "special": True, "normalized": False},
            },
            "eos_token": "<|a|>",
            "pad_token": "<|pad|>",
            "extra_special_tokens": ["<|x|>", "<|y|>"],
        },
    ],
)
def test_declared_tokens_and_a_beginning_of_text(tmp_path: Path, config: dict[str, Any]):
    llama_like(tmp_path, config)
    ours = Tokenizer.load(tmp_path)
    samples = [*SAMPLES, "a<|a|>b <|b|> c <|x|><|y|> <|im_end|> <s> </s> <|pad|>", "long " * 40]
    assert_same(ours, tmp_path, samples)
    assert ours.encode("hi")[0] == ours.id("<s>")
    assert ours.model_max_length is None
    out = tmp_path / "saved"
    ours.save(out)
    assert_same(ours, out, samples)


def test_special_ids():
    tokenizer = Tokenizer.train(CORPUS, "bpe:400", special="masked")
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    tokenizer.backend.add_special_tokens([AddedToken("<|x|>", special=True)])
    assert 400 in tokenizer.special_ids
