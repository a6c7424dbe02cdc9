"""Tiny models with tokenizers, for each kind of task."""

from __future__ import annotations

from typing import Any

import torch

import anyformer as af
from anyformer.blocks.head import Classifier
from anyformer.evaluation.logits import text_logits
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

WORDS = "the cat sat on the mat and the dog ran after it because it was a good or a bad dog.\nuser assistant: yes no . "


def _sharp(model: Transformer) -> Transformer:
    """Its answers differ by more than rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


def vary(model: Transformer, tokenizer: Tokenizer) -> tuple[Transformer, Tokenizer]:
    """Let a classifier of texts find each class in some of them: without training, one wins everywhere."""
    texts = [(WORDS[begin : begin + 20], None) for begin in range(60)]
    logits = torch.from_numpy(text_logits(model, tokenizer, texts)[0]).float()
    assert isinstance(model.head, Classifier)
    with torch.no_grad():
        model.head.labels.bias -= logits.mean(dim=0)
    return model, tokenizer


def encoder(head: dict[str, Any], seed: int = 0, max_length: int = 32) -> tuple[Transformer, Tokenizer]:
    """BERT with a head."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([WORDS * 9], "wordpiece:120", special="masked")
    config = af.preset(
        "bert-tiny",
        vocab_size=tokenizer.vocab_size,
        d_model=16,
        encoder_layers=2,
        max_length=max_length,
        attention={"heads": 2},
        head={"transform": None, "bias": "none", **head},
    )
    return _sharp(af.build(config)), tokenizer


def decoder(seed: int = 0, max_length: int = 48, template: str | None = None) -> tuple[Transformer, Tokenizer]:
    """LLaMA."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([WORDS * 9], "bpe:290")
    tokenizer.chat_template = template
    config = af.preset(
        "llama-nano",
        vocab_size=tokenizer.vocab_size,
        d_model=16,
        decoder_layers=2,
        max_length=max_length,
        attention={"heads": 2},
        special_tokens={"eos": (tokenizer.eos,)},
    )
    return _sharp(af.build(config)), tokenizer


def encoder_decoder(seed: int = 0) -> tuple[Transformer, Tokenizer]:
    """T5."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train([WORDS * 9], "bpe:290", special="seq2seq")
    config = af.preset(
        "t5-nano",
        vocab_size=tokenizer.vocab_size,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        attention={"heads": 2},
        special_tokens={"eos": (tokenizer.eos,), "pad": tokenizer.pad, "decoder_start": tokenizer.pad},
    )
    return _sharp(af.build(config)), tokenizer
