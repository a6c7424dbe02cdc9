"""Run directories, written as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from anyformer.families import preset

HEADER: dict[str, Any] = {
    "started": "2026-11-25T10:00:00+00:00",
    "parameters": 1_115_264,
    "flops_per_token": 6.0e6,
    "peak_flops_per_second": 2.4e11,
    "device": "cpu",
    "engine": "single",
    "dtype": "bfloat16",
}


def config(**changes: Any) -> dict[str, Any]:
    """What config.yaml holds, with some settings changed; `model` changes fields of the model."""
    model = preset("llama-nano").replace(**changes.pop("model", {})).to_dict()
    settings = {"preset": "llama-nano", "data": ["/texts/a.txt"], "tokenizer": "char", "steps": 100, "grad_clip": 1.0}
    return {**settings, "learning_rate": 1e-3, "batch_size": 8, "context": 128, **changes, "model": model}


def step(number: int, loss: float = 2.0, **more: Any) -> dict[str, Any]:
    """A line on training."""
    line = {"step": number, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 0.5, "tokens": number * 100}
    return {**line, "tokens_per_second": 10_000.0, "elapsed": number / 100, **more}


def evaluation(number: int, loss: float, **more: Any) -> dict[str, Any]:
    """A line on the validation text."""
    return {"step": number, "validation_loss": loss, "bits_per_byte": loss / 2, "elapsed": number / 100, **more}


def sample(number: int, written: str = "and so on", before: str = "Once", after: str = "") -> dict[str, Any]:
    """A line with a sample."""
    return {"step": number, "sample": {"before": before, "written": written, "after": after}}


def short_run() -> list[Mapping[str, Any]]:
    """A run of 100 steps that went well."""
    lines: list[Mapping[str, Any]] = [HEADER, evaluation(0, 5.0), sample(0, "xq")]
    for number in range(10, 101, 10):
        lines.append(step(number, 5 - number / 50))
        if number % 50 == 0:
            lines += [evaluation(number, 5.1 - number / 50), sample(number, f"after {number}")]
    return [*lines, {"step": 100, "state": "finished"}]


def write_run(path: Path, lines: Iterable[Mapping[str, Any] | str], settings: Mapping[str, Any] | None = None) -> Path:
    """A run directory; a line that is text is written as it is."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config() if settings is None else dict(settings)))
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (path / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return path
