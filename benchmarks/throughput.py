"""Training throughput: anyformer, nanoGPT and Hugging Face with the same models and batches, one table a model.

    python benchmarks/throughput.py --nanogpt PATH/TO/nanoGPT
    python benchmarks/throughput.py --rows gpt2,t5 --steps 3
    python benchmarks/throughput.py --rows gpt2 --only 'hf compiled bf16' --steps 2

A step is a whole training step: forward, loss, backward, clipping at 1.0, AdamW. Every candidate runs in a process of
its own, so peak memory is its own (VmHWM). anyformer and one peer at a time take turns, step by step (A B A B), so that
other load affects both. A ratio is the median of the ratios of neighboring steps; "CPU ratio" is the same of processor
time, which other programs on shared cores hardly affect. Tokens/s are of the fastest step.

Peers run eager and compiled, in fp32 and bf16 autocast, with fused AdamW; the best of these is the peer's best. nanoGPT
as shipped for a CPU (its README: --device=cpu --compile=False, where autocast is off and AdamW is not fused) has its
own row. nanoGPT pads its vocabulary to 50,304; the others have GPT-2's 50,257. Dropout is off, nanoGPT's choice for
pretraining, unless --dropout published asks for each family's published rates.

Achieved GFLOP/s count the matmuls of the Hugging Face model (forward, and twice that backward), whatever a candidate
actually computes. The fraction of the peak compares them with the fastest fp32 or bf16 matmul of this run, both per
second of processor time, which holds on shared cores as well.

Needs `pip install 'anyformer[bench]'` and, for compiled rows, a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.int64]]
Step = Callable[[Arrays], float]

IGNORED = -100
DTYPES = {"bf16": "bfloat16", "fp32": "float32", "int8": "int8"}
LEARNING_RATE, DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Row:
    """One model and the shape of its batch; `source` is 0 for models with one input."""

    preset: str
    peer: str
    batch: int
    time: int
    source: int = 0
    masked: float = 0.0
    nanogpt: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * (self.time + self.source)


ROWS = {
    "gpt2": Row("gpt2", "GPT2LMHeadModel", 4, 512, nanogpt=True),
    "llama": Row("smollm2-135m", "LlamaForCausalLM", 4, 512),
    "bert": Row("bert-base", "BertForMaskedLM", 8, 256, masked=0.15),
    # 512 tokens with 15% in spans of 3 hidden: the decoder writes the spans and their sentinels.
    "t5": Row("t5-small", "T5ForConditionalGeneration", 8, 114, source=512),
    "2017": Row("transformer-base", "MarianMTModel", 32, 32, source=32),
    "mixtral": Row("mixtral-nano", "MixtralForCausalLM", 32, 128),
}


def batch(row: Row, vocab: int, step: int) -> Arrays:
    """The arrays of a step, the same in every process."""
    rng = np.random.default_rng((len(row.preset), step))
    drawn = rng.integers(5, vocab, (row.batch, row.time + 1))
    tokens, targets = drawn[:, :-1].copy(), drawn[:, 1:].copy()
    if row.masked:
        hidden = rng.random(tokens.shape) < row.masked
        targets = np.where(hidden, tokens, IGNORED)
        tokens[hidden] = 4
    arrays = {"tokens": tokens, "targets": targets}
    if row.source:
        arrays["source"] = rng.integers(5, vocab, (row.batch, row.source))
    return arrays


# --- candidates: each runs in a process of its own ------------------------------------------------------------------


def preset(row: Row, dropout: str, layers: int | None = None) -> Any:
    """The config of a row, for which Hugging Face has a class; optionally with fewer blocks."""
    from anyformer.families import PRESETS

    config = PRESETS[row.preset]
    if layers is not None:
        encoder, decoder = min(layers, config.encoder_layers), min(layers, config.decoder_layers)
        config = config.replace(encoder_layers=encoder, decoder_layers=decoder)
    if config.position.kind == "sinusoidal":  # Marian's order of the paper's sinusoids
        config = config.replace(position={"layout": "halves"})
    if dropout == "none":
        parts = {part: {"dropout": 0.0} for part in ("attention", "feed_forward", "embedding")}
        config = config.replace(dropout=0.0, **parts)
    return config


def anyformer_step(row: Row, setting: str, dropout: str, layers: int | None) -> Step:
    """The step of our trainer with its own defaults, or as `setting` says."""
    from functools import partial

    import torch

    from anyformer.data.batch import Batch
    from anyformer.fastest_dtype import products
    from anyformer.model import build
    from anyformer.training.memory import keep_freed_memory
    from anyformer.training.optimizer import make_optimizer
    from anyformer.training.precision import choose_compilation, choose_precision
    from anyformer.training.strategies.base import Plan, Strategy
    from anyformer.training.strategies.group import Group

    keep_freed_memory()
    config, dtype = preset(row, dropout, layers), next((name for word, name in DTYPES.items() if word in setting), None)
    precision = choose_precision("cpu", dtype, lambda: products(config, row.tokens))
    asked = True if "compiled" in setting else False if "eager" in setting else None
    torch.manual_seed(0)
    optimizer = partial(make_optimizer, "adamw", learning_rate=LEARNING_RATE, weight_decay=DECAY, betas=BETAS)
    plan = Plan(precision, optimizer, grad_clip=CLIP, compile=choose_compilation(asked, precision.device)[0])
    strategy = Strategy(build(config), plan, Group())

    def step(arrays: Arrays) -> float:
        return strategy.step(0, Batch(**arrays), LEARNING_RATE)[0].item()

    return step


def hugging_face(row: Row, dropout: str, layers: int | None) -> Any:
    """Hugging Face's model with random weights."""
    import transformers

    from anyformer.families import to_huggingface

    _, raw = to_huggingface(preset(row, dropout, layers))
    config = transformers.AutoConfig.for_model(**raw)
    config.use_cache = False
    if dropout == "none":  # config.json leaves out the rates that a family lacks, and defaults come in
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    return getattr(transformers, row.peer)(config)


def hugging_face_inputs(row: Row, arrays: Arrays) -> dict[str, Any]:
    """A batch as keyword arguments of a Hugging Face model; the targets are already aligned with the logits."""
    import torch

    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tokens, targets = inputs["tokens"], inputs["targets"]
    if row.source:
        return {"input_ids": inputs["source"], "decoder_input_ids": tokens, "labels": targets}
    if row.masked:
        return {"input_ids": tokens, "labels": targets}
    return {"input_ids": tokens, "labels": targets, "shift_labels": targets}


def hugging_face_step(row: Row, setting: str, dropout: str, layers: int | None) -> Step:
    """The step of a plain loop around a Hugging Face model."""
    import torch

    torch.manual_seed(0)
    model = hugging_face(row, dropout, layers).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    forward = torch.compile(model) if "compiled" in setting else model

    def step(arrays: Arrays) -> float:
        with autocast(setting):
            loss = forward(**hugging_face_inputs(row, arrays)).loss
        return update(model, optimizer, loss)

    return step


def nanogpt_step(path: Path, setting: str, layers: int | None) -> Step:
    """The step of nanoGPT's train.py around its model.py."""
    import torch

    sys.path.insert(0, str(path))
    from model import GPT, GPTConfig  # nanoGPT's

    torch.manual_seed(0)
    blocks = 12 if layers is None else layers
    config = GPTConfig(
        block_size=1024, vocab_size=50304, n_layer=blocks, n_head=12, n_embd=768, dropout=0.0, bias=False
    )
    model = GPT(config).train()
    optimizer = model.configure_optimizers(DECAY, LEARNING_RATE, BETAS, "cpu")
    if "shipped" not in setting:
        optimizer = torch.optim.AdamW(optimizer.param_groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    forward = torch.compile(model) if "compiled" in setting else model

    def step(arrays: Arrays) -> float:
        with autocast(setting):
            _, loss = forward(torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["targets"]))
        return update(model, optimizer, loss)

    return step


def autocast(setting: str) -> Any:
    """What a setting asks for."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if "bf16" in setting else nullcontext()


def update(model: Any, optimizer: Any, loss: Any) -> float:
    """The second half of a peer's step."""
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def run_candidate(arguments: argparse.Namespace) -> None:
    """The child's side: a line "step N" comes in, a line of JSON with what it cost goes out."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    row, (who, _, setting) = ROWS[arguments.row], arguments.candidate.partition(" ")
    torch.set_num_threads(arguments.threads)
    vocab = preset(row, "none").vocab_size
    if arguments.allocator and who != "anyformer":
        from anyformer.training.memory import keep_freed_memory

        keep_freed_memory()
    if who == "anyformer":
        step = anyformer_step(row, setting, arguments.dropout, arguments.layers)
    elif who == "hf":
        step = hugging_face_step(row, setting, arguments.dropout, arguments.layers)
    else:
        step = nanogpt_step(arguments.nanogpt, setting, arguments.layers)
    for line in sys.stdin:
        arrays = batch(row, vocab, int(line))
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step(arrays)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": loss}
        answers.write(json.dumps({**spent, "memory": peak_memory()}) + "\n")
        answers.flush()


def peak_memory() -> int:
    """Peak memory of this process in bytes (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


# --- the race -------------------------------------------------------------------------------------------------------


class Candidate:
    """A candidate in a process of its own, and what its steps cost."""

    def __init__(self, name: str, row: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--candidate", name, "--row", row]
        command += ["--threads", str(options.threads), "--dropout", options.dropout]
        command += ["--nanogpt", str(options.nanogpt)] if options.nanogpt else []
        command += ["--layers", str(options.layers)] if options.layers else []
        command += ["--allocator"] if options.allocator else []
        environment = {"GOMP_SPINCOUNT": "20000", **os.environ, "OMP_NUM_THREADS": str(options.threads)}
        self.name = name
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.memory, self.loss, self.warmup, self._next = 0, 0.0, 0.0, 0
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def step(self, *, counts: bool = True) -> None:
        """Take a step; it is recorded if it counts."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{self._next}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early: run with --verbose to see why")
        answer = json.loads(line)
        self._next += 1
        self.memory, self.loss = answer["memory"], answer["loss"]
        if counts:
            self.wall.append(answer["wall"])
            self.cpu.append(answer["cpu"])
        else:
            self.warmup += answer["wall"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def race(name: str, options: argparse.Namespace) -> None:
    """Run a row and print its table."""
    row, peak = ROWS[name], Peak(options.threads)
    work = operations(row, options.layers)
    names = [f"hf {mode} {dtype}" for mode in ("eager", "compiled") for dtype in ("fp32", "bf16")]
    if row.nanogpt and options.nanogpt:
        names += [f"nanogpt {n.removeprefix('hf ')}" for n in names] + ["nanogpt as shipped"]
    names = [n for n in names if not options.only or any(part in n for part in options.only.split(","))]
    print(f"\n## {name}: {row.preset}, {describe(row)}, {row.tokens:,} tokens a step, {work / 1e12:.2f} TFLOP\n")
    results: list[tuple[Candidate, float | None, float | None]] = []
    with Candidate(f"anyformer {options.ours}".strip(), name, options) as ours:
        for _ in range(options.warmup):
            ours.step(counts=False)
        for peer_name in names:
            with Candidate(peer_name, name, options) as peer:
                for _ in range(options.warmup):
                    peer.step(counts=False)
                first = len(ours.wall)
                for _ in range(options.steps):
                    ours.step()
                    peer.step()
                    peak.measure()
                wall, cpu = median_ratio(peer.wall, ours.wall[first:]), median_ratio(peer.cpu, ours.cpu[first:])
                results.append((peer, wall, cpu))
                speed = f"{row.tokens / min(peer.wall):,.0f} tokens/s; we take {1 / wall:.2f} of its time"
                print(f"... {peer_name}: {speed} ({1 / cpu:.2f} of processor time)", file=sys.stderr, flush=True)
        while len(ours.wall) < options.steps:
            ours.step()
            peak.measure()
    results.insert(0, (ours, None, None))
    print("| candidate | tokens/s | us / it | CPU ratio | GFLOP/s | of peak | peak memory | first steps |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for who, wall, cpu in results:
        rate, share = work / min(who.wall), work / min(who.cpu) / peak.best
        ratios = "| | " if wall is None or cpu is None else f"| {wall:.2f} | {cpu:.2f} "
        print(
            f"| {who.name} | {row.tokens / min(who.wall):,.0f} {ratios}| {rate / 1e9:.0f} | {share:.0%} "
            f"| {who.memory / 2**30:.2f} GiB | {who.warmup:.0f} s |"
        )
    print(f"\nPeak of matrix products in this run: {peak}.", flush=True)
    peers = [(wall, who.name) for who, wall, _ in results if wall is not None and "shipped" not in who.name]
    if peers:
        ratio, best = min(peers)
        print(f"Best peer: {best}; we are {ratio:.2f} times as fast.")


def median_ratio(theirs: list[float], ours: list[float]) -> float:
    """Their time divided by ours, from neighboring steps."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def describe(row: Row) -> str:
    """The shape of a batch."""
    return f"batch {row.batch} x {row.time}" if not row.source else f"batch {row.batch} x ({row.source} -> {row.time})"


def operations(row: Row, layers: int | None = None) -> float:
    """FLOPs of the matmuls of a training step of Hugging Face's model, with eager attention and all logits.

    Counted in a forward pass of one text; a backward pass has twice as many.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = hugging_face(row, "none", layers)
    model.set_attn_implementation("eager")
    one = {name: array[:1] for name, array in batch(row, model.config.vocab_size, 0).items()}
    inputs = {name: value for name, value in hugging_face_inputs(row, one).items() if "labels" not in name}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return 3.0 * row.batch * counter.get_total_flops()


class Peak:
    """The fastest matmul seen in either dtype, of shapes that the models have."""

    SHAPES = ((2048, 768, 3072), (2048, 3072, 768), (1024, 1024, 1024))

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.rates = {"fp32": 0.0, "bf16": 0.0}
        self.best = 0.0
        self._operands = [
            (dtype, torch.randn(m, k, dtype=kind), torch.randn(n, k, dtype=kind))
            for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))
            for m, k, n in self.SHAPES
        ]

    def measure(self) -> None:
        """Measure each shape."""
        from torch.nn.functional import linear

        for dtype, x, weight in self._operands:
            for _ in range(3):
                wall, cpu = time.perf_counter(), time.process_time()
                linear(x, weight)
                work = 2 * x.shape[0] * weight.numel()
                self.rates[dtype] = max(self.rates[dtype], work / (time.perf_counter() - wall))
                self.best = max(self.best, work / (time.process_time() - cpu))

    def __str__(self) -> str:
        rates = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in self.rates.items())
        return f"{rates}; {self.best / 1e9:.0f} GFLOP for a second of one core"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--steps", type=int, default=5, help="steps of each candidate that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (compilation happens here)")
    parser.add_argument("--only", default="", help="run only peers whose name holds one of these, e.g. 'hf compiled'")
    parser.add_argument(
        "--ours", default="", help="our setting: words of fp32, bf16, int8, eager, compiled; none: our own choice"
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--layers", type=int, help="fewer blocks in each stack, for a quick look")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dropout", choices=("none", "published"), default="none")
    parser.add_argument("--allocator", action="store_true", help="let the peers keep freed memory as well, as we do")
    parser.add_argument("--verbose", action="store_true", help="show what candidates print")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark, or one candidate of it."""
    arguments = options()
    if arguments.candidate:
        run_candidate(arguments)
        return
    unknown = set(arguments.rows.split(",")) - set(ROWS)
    if unknown:
        raise SystemExit(f"There is no row {', '.join(sorted(unknown))}: choose of {', '.join(ROWS)}.")
    if "gpt2" in arguments.rows.split(",") and not arguments.nanogpt:
        print("nanoGPT is left out: give --nanogpt PATH to a checkout.", file=sys.stderr)
    for name in arguments.rows.split(","):
        race(name, arguments)


if __name__ == "__main__":
    main()
