"""Trains in several processes what test_strategies.py asks for: `python strategies_worker.py JOBS.json`."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import parameters, targets
from anyformer.blocks.linear import Dropout
from anyformer.checkpoint import save
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.data.batch import IGNORED, Batch
from anyformer.families import preset
from anyformer.finetuning.config import FinetuneConfig
from anyformer.finetuning.recipe import Finetuning
from anyformer.kernels.cpu import matmul as products
from anyformer.kernels.packed_weight import PackedWeight, unpack
from anyformer.kernels.quantization import dequantize
from anyformer.model import Transformer, build
from anyformer.quantization import quantize
from anyformer.training.averaging import make_average
from anyformer.training.losses import PAIR_CLASSIFIER, LossModule
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.recipe import Recipe, cut_of, make_strategy
from anyformer.training.strategies.base import Plan
from anyformer.training.strategies.group import Group, join
from tests.finetuning import toys
from tests.training.conftest import plan

STEPS = 6

# GPT-2 and BERT have a bias of keys, whose gradient is nothing but rounding; Adam makes steps of full length of it.
CASES: dict[str, dict[str, Any]] = {
    "tied": {"preset": "gpt2-nano", "layers": {"decoder_layers": 2, "head.bias": "fixed"}, "average": "ema:0.9"},
    "masked": {"preset": "bert-tiny", "layers": {"encoder_layers": 2}, "grad_accumulation": 3, "average": "last:2"},
    "pairs": {"preset": "t5-small", "layers": {"encoder_layers": 2, "decoder_layers": 1}, "label_smoothing": 0.1},
    "muon": {"preset": "llama-nano", "layers": {"decoder_layers": 2}, "optimizer": "muon", "recompute": True},
    "shared": {
        "preset": "albert-base-v2",
        "layers": {"encoder_layers": 3, "attention.heads": 2, "embedding.width": 24},
        "recompute": True,
    },
    "dropout": {
        "preset": "t5-small",
        "layers": {"encoder_layers": 2, "decoder_layers": 2},
        "dropout": 0.2,
        "recompute": True,
    },
    "masked-dropout": {"preset": "bert-tiny", "layers": {"encoder_layers": 2}, "dropout": 0.2, "grad_accumulation": 3},
    "classify": {"task": "classify", "model": "encoder"},
    "chat": {"task": "chat", "model": "decoder", "lora": 4, "average": "ema:0.9"},
    "dora": {"task": "chat", "model": "decoder", "lora": 4, "dora": True},
    "stored-int4": {"task": "chat", "model": "llama-nano", "lora": 4, "stored": "int4"},
    "int8": {"task": "chat", "model": "llama-nano", "lora": 4, "dora": True, "quantize": "int8", "recompute": True},
    "int4-experts": {"task": "chat", "model": "mixtral-nano", "lora": 4, "quantize": "int4"},
    "int4-preference": {"task": "preference", "model": "llama-nano", "lora": 4, "quantize": "int4"},
    "preference": {"task": "preference", "model": "decoder", "label_smoothing": 0.1},
    "embed": {"task": "embed", "model": "both"},
    "negatives": {"task": "embed", "model": "encoder", "rows": toys.positives},
    "pair-class": {"task": "embed", "model": "encoder", "rows": toys.pairs_with_a_class},
}
MIXTURES = {
    "mixtral": "mixtral-nano",
    "qwen3_moe": "qwen3-30b-a3b",
    "olmoe": "olmoe-1b-7b",
    "granitemoe": "granite-3.0-1b-a400m",
    "gpt_oss": "gpt-oss-20b",
    "deepseek_v2": "deepseek-v2-lite",
    "deepseek_v3": "deepseek-v3",
}
"""Types with experts: a preset of each."""
DRAWN = 3
"""Models that are drawn of each type with experts."""


def _drawn(name: str, number: int) -> dict[str, Any]:
    """A case of a type with experts, their counts, heads and balance drawn; the last one with adapters on them."""
    chance = np.random.default_rng([number, *name.encode()])
    count, heads = int(chance.choice([4, 6])), int(chance.choice([2, 4]))
    layers: dict[str, Any] = {
        "decoder_layers": 2,
        "feed_forward.width": int(chance.integers(5, 40)),
        "feed_forward.experts.count": count,
        # The weight of one alone is 1, and its router's gradient nothing but rounding.
        "feed_forward.experts.used": int(chance.integers(2, count)),
        "feed_forward.experts.balance": float(chance.choice([0.02, 0.5])),
        "attention.heads": heads,
    }
    if "deepseek" in name:
        layers |= {"feed_forward.experts.groups": 2, "feed_forward.experts.used_groups": 2, "other_layers.first": "o"}
        latent = {"rank": 6, "rotary_dim": 4, "value_dim": 5, "query_rank": None if name == "deepseek_v2" else 7}
        layers |= {f"attention.latent.{field}": value for field, value in latent.items()} | {"attention.head_dim": 10}
    else:
        layers |= {"attention.kv_heads": int(chance.choice([1, 2])), "embedding.padding": None}
    steps = {"grad_accumulation": int(chance.choice([1, 2])), "recompute": bool(chance.integers(2))}
    return {"preset": MIXTURES[name], "layers": layers, "adapters": number == DRAWN - 1, **steps}


EXPERTS = {f"{name}-{number}": _drawn(name, number) for name in MIXTURES for number in range(DRAWN)}
CASES |= EXPERTS
CASES["muon-experts"] = EXPERTS["muon-experts"] = {**_drawn("mixtral", 0), "optimizer": "muon"}
QUANTIZED = ("stored-int4", "int8", "int4-experts", "int4-preference")
FINETUNED = (*QUANTIZED, "classify", "chat", "dora", "preference", "embed", "negatives", "pair-class")


def config(case: str) -> ModelConfig:
    sizes = {"vocab_size": 53, "d_model": 32, "max_length": 16, "feed_forward.width": 48}
    heads = {"attention.heads": 2, "attention.kv_heads": None, "attention.head_dim": None}
    made = preset(CASES[case]["preset"]).replace(**{**sizes, **heads, **CASES[case]["layers"]})
    return with_dropout(made, CASES[case].get("dropout", 0.0))


def batch(case: str, step: int, rows: int = 7, time: int = 12) -> Batch:
    """Rows of which some have many targets, some few, and the first of several none."""
    chance = np.random.default_rng(step)
    tokens, targets = (chance.integers(5, 53, (rows, time)) for _ in range(2))
    for row in range(1, rows):
        targets[row, chance.integers(1, time) :] = IGNORED
    if "masked" in case:
        targets[chance.random(targets.shape) < 0.7] = IGNORED
    if rows > 1:
        targets[0] = IGNORED
    if case not in ("pairs", "dropout"):
        return Batch(tokens, targets)
    source = chance.integers(5, 53, (rows, 9))
    return Batch(tokens, targets, source=source, source_mask=np.arange(9) < chance.integers(3, 10, (rows, 1)))


TOYS = "ANYFORMER_TEST_TOYS"
"""The folder of what is fine-tuned. Training a tokenizer twice may give two."""


def write_toys(folder: Path) -> None:
    """Write the models and the examples of all cases."""
    for case in FINETUNED:
        (folder / case).mkdir()
        options = CASES[case]
        if case in QUANTIZED:  # and so wide that its matrices are worth it
            model, tokenizer = toys.decoder(options["model"], d_model=64)
        else:
            model, tokenizer = toys.MODELS[options["model"]]()
        if "stored" in options:
            quantize(model, options["stored"])
        save(model, folder / case / "model", tokenizer=tokenizer)
        task, rows = options["task"], options.get("rows")
        toys.write(folder / case / "data.jsonl", toys.rows(task) if rows is None else rows())


@cache
def recipe(case: str) -> Recipe[Any]:
    """Fine-tuning on the toy examples that `write_toys` has written."""
    options, place = CASES[case], Path(os.environ[TOYS]) / case
    data = place / "data.jsonl"
    given = {"batch_size": 7, "device": "cpu", "dtype": "float32"}
    given |= {name: options[name] for name in ("lora", "dora", "quantize") if name in options}
    config = FinetuneConfig(base=str(place / "model"), data=(str(data),), task=options["task"], **given)
    return Finetuning(config, Console(quiet=True))


def made(
    case: str, engine: str | None, group: Group
) -> tuple[Transformer, Callable[..., Batch], Callable[[Transformer], nn.Module]]:
    """The model of a case, what makes its batches, and its loss; of FSDP's models what a process keeps of them."""
    tuned = recipe(case) if case in FINETUNED else None
    torch.manual_seed(0)
    if tuned is None:
        model = build(config(case))
        for buffer in model.buffers():
            buffer.normal_(std=0.1)
        if CASES[case].get("adapters"):
            names = {"target_modules": [*targets(model)], "target_parameters": [*parameters(model)]}
            add_adapter(model, LoraConfig(rank=2, **names))
        return model, partial(batch, case), LossModule
    model = tuned.build(cut_of(engine, plan(), group))
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0

    def of(step: int, rows: int = 7) -> Batch:
        whole = tuned.batches.batch(step)
        return whole if rows == 7 else whole.split(7)[0]

    return model, of, tuned.loss


def train(
    group: Group,
    case: str,
    *,
    engine: str | None = None,
    zero: int = 2,
    tensor: int = 1,
    context: int = 1,
    load: str | None = None,
    save: str | None = None,
    end: int = STEPS,
    dtype: str = "float32",
) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Train from the start, or from the middle where a checkpoint is loaded.

    Returns:
        Which engine was active; of each step the loss and the gradient's length, and two evaluations at the end; the
        averaged weights (on the first process).
    """
    with mock.patch.object(products, "quantized_matmul", _exact) if case in QUANTIZED else nullcontext():
        return _train(group, case, engine, zero, tensor, context, load, save, end, dtype)


def _exact(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """The product of a quantized weight and an input that is not rounded: where to, its last bit may decide."""
    return F.linear(x, dequantize(unpack(weight), x.dtype), bias)


def _train(
    group: Group,
    case: str,
    engine: str | None,
    zero: int,
    tensor: int,
    context: int,
    load: str | None,
    save: str | None,
    end: int,
    dtype: str,
) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    options = CASES[case]
    model, batches, loss = made(case, engine, group)
    parts = options.get("grad_accumulation", 2)
    if (case in EXPERTS or case == "int4-experts") and group.world_size == 1:
        # Experts are balanced by the tokens of each part of a batch on each process: as many parts on one.
        parts *= 2
    steps = Plan(
        Precision(torch.device("cpu"), getattr(torch, dtype), "for a test"),
        lambda model: make_optimizer(options.get("optimizer", "adamw"), model, 1.0),
        average=make_average(options.get("average")),
        grad_clip=0.5,
        grad_accumulation=parts,
        label_smoothing=options.get("label_smoothing", 0.0),
        gradient_checkpointing=options.get("recompute", False),
        loss=loss,
    )
    layout = {"tensor_parallel": tensor, "context_parallel": context}
    strategy = make_strategy(engine, model, steps, group, zero_stage=zero, **layout)
    said, figures = str(strategy), {}
    if case in FINETUNED:
        recipe(case).prepare(strategy)
    if load is not None:
        for buffer in model.buffers():
            buffer.zero_()
        strategy.load(Path(load))
    else:
        # Nothing that a step does may be disturbed by it.
        strategy.evaluate(batches(1000))
    for step in range(STEPS // 2 if load else 0, end):
        figures[str(step)] = strategy.step(step, batches(step), 1e-3 * (1 + step % 3)).tolist()
        if step % 2:
            strategy.snapshot()
    if save is not None:
        if group.is_main:
            Path(save).mkdir()
        group.any(False)
        strategy.save(Path(save))
    with strategy.averaged():
        figures["averaged"] = [strategy.evaluate(batches(1001)).item()]
    # One row for two processes: one of them has none.
    figures["latest"] = [strategy.evaluate(batches(1002, rows=1)).item(), strategy.evaluate(batches(1003)).item()]
    with strategy.gathered() as model:
        state = {} if model is None else model.state_dict()
        weights = {
            name: value.clone()
            for name, value in state.items()
            if PAIR_CLASSIFIER not in name and (case not in QUANTIZED or ".adapters." in name)
        }
    strategy.close()
    return said, figures, weights


def main() -> None:
    warnings.simplefilter("error", UserWarning)
    torch.set_num_threads(1)
    jobs: list[dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    group = join(jobs[0]["engine"], "cpu")
    gc.freeze()  # DeepSpeed collects garbage several times for each model
    for job in jobs:
        if job["engine"] == "deepspeed":
            from anyformer.training.strategies import deepspeed

            # All of these weights are so small that ZeRO-3 would leave them whole, which one case shall do.
            deepspeed._KEPT_WHOLE = 100_000 if job["case"] == "masked" else 0
        out = Path(job.pop("out"))
        said, figures, weights = train(group, **job)
        if group.is_main:
            save_file(weights, out.with_suffix(".safetensors"))
            out.with_suffix(".json").write_text(json.dumps({"said": said, "figures": figures}), encoding="utf-8")
    group.close()


def with_dropout(part: Any, rate: float) -> Any:
    """A config with one rate everywhere."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == "dropout":
            changes[field.name] = rate
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_dropout(value, rate)
    return dataclasses.replace(part, **changes)


if __name__ == "__main__":
    main()
