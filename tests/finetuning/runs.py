"""Short runs of fine-tuning on tiny models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyformer as af
from anyformer.cli import finetune
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from tests.evaluation.models import decoder, encoder, encoder_decoder

ANIMALS = ("cat", "dog")
TEMPLATE = "{% for m in messages %}{{ m.role + ' ' + m.content + eos_token }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant {% endif %}"
SHORT = ("--device", "cpu", "--dtype", "float32", "--learning-rate", "3e-3")

ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "classify": [
        {"text": f"{other} the {ANIMALS[index % 2]} sat on {index}", "label": ("miaow", "w**f | <b>")[index % 2]}
        for index in range(30)
        for other in ("it was", "and after")
    ],
    "tag": [
        {"tokens": ["the", animal, "ran", str(index)], "ner_tags": ["O", f"B-{animal}", "O", "O"]}
        for index in range(20)
        for animal in ANIMALS
    ],
    "embed": [
        {"sentence1": f"the {a} {index}", "sentence2": f"a {b} ran", "score": float(a == b)}
        for index in range(10)
        for a in ANIMALS
        for b in ANIMALS
    ],
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"the {animal} {index}"},
                {"role": "assistant", "content": "yes" if animal == "cat" else "no ```<script>alert(1)</script>"},
            ]
        }
        for index in range(20)
        for animal in ANIMALS
    ],
    "seq2seq": [
        {"source": f"the {animal} {index}", "target": f"a {animal}"} for index in range(10) for animal in ANIMALS
    ],
}


def base(task: str, folder: Path) -> Path:
    """A model that somebody has trained, saved."""
    model: Transformer
    if task in ("classify", "tag", "embed"):
        model, tokenizer = encoder({"kind": "none", "pooler": None})
    elif task == "seq2seq":
        model, tokenizer = encoder_decoder()
    else:
        model, tokenizer = decoder(template=TEMPLATE, max_length=64)
    af.save(model, folder / "base", tokenizer=tokenizer)
    return folder / "base"


def tune(task: str, folder: Path, *flags: str, steps: int = 6) -> Path:
    """The directory of a run of a few steps."""
    model = folder / "base" if (folder / "base").exists() else base(task, folder)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]), encoding="utf-8")
    begun = ["--data", str(data), "--runs", str(folder / "runs"), "--name", "run", *SHORT]
    assert finetune.run([str(model), *begun, "--batch-size", "4", "--steps", str(steps), *flags]) == 0
    return folder / "runs" / "run"


def evaluation(run: Path) -> dict[str, Any]:
    """What evaluation.json says."""
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def load(run: Path) -> tuple[Transformer, Tokenizer]:
    """The model that a run has left."""
    model, tokenizer = af.load(run)
    assert tokenizer is not None
    return model, tokenizer
