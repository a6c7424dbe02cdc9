"""Tiny models, and examples that are learned in a moment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import anyformer as af
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

WORDS = (
    "the cat sat on the mat and the dog ran after it because it was a good or a bad dog .\nuser: assistant: yes no . "
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

Row = Mapping[str, Any]


def encoder(**changes: Any) -> tuple[Transformer, Tokenizer]:
    """BERT with its head of a language model and without a pooler."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([WORDS * 9], "wordpiece:120", special="masked")
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 16, "encoder_layers": 2, "max_length": 32}
    config = af.preset("bert-tiny", **sizes, attention={"heads": 2}, feed_forward={"width": 32})
    return af.build(config.replace(special_tokens={"pad": tokenizer.pad}, **changes)), tokenizer


def decoder(name: str = "llama-nano", **changes: Any) -> tuple[Transformer, Tokenizer]:
    """A decoder with a chat template."""
    torch.manual_seed(0)
    trained = Tokenizer.train([WORDS * 9], "bpe:290")
    tokenizer = Tokenizer(trained.backend, {**trained.config, "chat_template": TEMPLATE})
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 16, "decoder_layers": 2, "max_length": 48}
    config = af.preset(name, **sizes, attention={"heads": 2}, feed_forward={"width": 32})
    return af.build(config.replace(special_tokens={"eos": (tokenizer.eos,)}, **changes)), tokenizer


def encoder_decoder() -> tuple[Transformer, Tokenizer]:
    """T5."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([WORDS * 9], "bpe:290", special="seq2seq")
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    tokens = {"eos": (tokenizer.eos,), "pad": tokenizer.pad, "decoder_start": tokenizer.pad}
    config = af.preset("t5-nano", **sizes, attention={"heads": 2}, feed_forward={"width": 32})
    return af.build(config.replace(special_tokens=tokens)), tokenizer


MODELS: Mapping[str, Callable[[], tuple[Transformer, Tokenizer]]] = {
    "encoder": encoder,
    "decoder": decoder,
    "both": encoder_decoder,
}


def _texts(seed: int, count: int) -> list[tuple[str, bool]]:
    """Different texts, and whether an animal is in each."""
    chance = random.Random(seed)
    rest = ("the", "a", "good", "bad", "sat", "on", "and", "was", "it")
    made: dict[str, bool] = {}
    while len(made) < count:
        words = chance.choices(rest, k=chance.randint(2, 9))
        animal = chance.random() < 0.5
        words.insert(chance.randrange(len(words)), chance.choice(("cat", "dog") if animal else ("mat", "ran")))
        made[" ".join(words)] = animal
    return list(made.items())


def rows(task: str, count: int = 60, seed: int = 0) -> list[Row]:
    """Rows of a task, from which it is easily learned."""
    texts = _texts(seed, count)
    said = {True: "yes", False: "no"}
    match task:
        case "classify":
            return [{"text": text, "label": said[animal]} for text, animal in texts]
        case "tag":
            kinds = {"cat": "B-animal", "dog": "B-animal", "mat": "B-thing", "ran": "O"}
            return [
                {"tokens": text.split(), "ner_tags": [kinds.get(word, "O") for word in text.split()]}
                for text, _ in texts
            ]
        case "embed":
            others = _texts(seed + 1, count)
            return [
                {"sentence1": a, "sentence2": b, "score": float(one == other)}
                for (a, one), (b, other) in zip(texts, others, strict=True)
            ]
        case "chat":
            return [
                {
                    "messages": [
                        {"role": "user", "content": text},
                        {"role": "assistant", "content": said[animal]},
                    ]
                }
                for text, animal in texts
            ]
        case "completion":
            return [{"prompt": f"{text} :", "completion": f" {said[animal]}"} for text, animal in texts]
        case "preference":
            return [
                {"prompt": f"{text} :", "chosen": f" {said[animal]}", "rejected": f" {said[not animal]}"}
                for text, animal in texts
            ]
        case _:
            return [{"source": text, "target": said[animal]} for text, animal in texts]


def positives() -> list[Row]:
    """Texts with another that belongs to each."""
    return [{"anchor": row["text"], "positive": "cat " + row["text"]} for row in rows("classify")]


def pairs_with_a_class(count: int = 60, seed: int = 0) -> list[Row]:
    """Pairs, and whether an animal is in the first one."""
    first, second = rows("classify", count, seed), rows("classify", count, seed + 1)
    return [
        {"sentence1": a["text"], "sentence2": b["text"], "label": a["label"]}
        for a, b in zip(first, second, strict=True)
    ]


def write(path: Path, content: Sequence[Row]) -> Path:
    """Write rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


TASKS: Mapping[str, str] = {
    "classify": "encoder",
    "tag": "encoder",
    "embed": "encoder",
    "chat": "decoder",
    "completion": "decoder",
    "preference": "decoder",
    "seq2seq": "both",
}
"""The model that each task is tried with."""
