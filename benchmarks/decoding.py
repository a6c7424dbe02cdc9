"""Tokens/s of one stream, of 16 streams and of prefill: anyformer, Hugging Face and llama.cpp with the same weights.

    python benchmarks/decoding.py MODEL_DIRECTORY                      # such as SmolLM2-135M's
    python benchmarks/decoding.py MODEL_DIRECTORY --rounds 5 --threads 2

The candidates take turns, round by round. llama.cpp gets GGUF files converted from the directory; build it for this
machine:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python

    decode N   one greedy token a step after a context of N; the median over the rounds
    GB/s       bytes of weights that such a step reads, times steps a second; beside the machine's bandwidth
    prompt     prefill of 512 tokens
    16         16 streams in one batch, tokens of all

On CPUs with AMX the system ends llama.cpp once another library has used these registers in its threads, as torch's
bfloat16 matmuls do: compare with llama.cpp (--only anyformer llama.cpp) and with Hugging Face (--only anyformer
Hugging) in separate runs.

Needs `pip install 'anyformer[bench]' psutil`. Candidates that are not installed are skipped, with a note.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import anyformer as af

CONTEXTS = (8, 512)
PROMPT, STREAMS, CAPACITY = 512, 16, 1024
NEW, NEW_STREAMS = 32, 12


class Candidate(Protocol):
    """A model with prefill and decoding."""

    size: int
    """Bytes of the weights that a step reads."""

    def read(self, streams: int, length: int) -> None:
        """Prefill so many sequences of this length, with an empty cache."""
        ...

    def step(self, streams: int) -> None:
        """Decode one more token of every sequence."""
        ...


class Ours:
    def __init__(self, directory: Path, kind: str) -> None:
        from anyformer.generation.cached_decoder import DecoderStep

        integers = kind if kind.startswith("int") else None
        self._model, _ = af.load(directory, None if integers else kind, quantize=integers)
        self._step = DecoderStep(self._model)
        self.size = sum(tensor.nbytes for tensor in (*self._model.parameters(), *self._model.buffers()))

    def read(self, streams: int, length: int) -> None:
        self._cache = self._model.make_cache(streams, CAPACITY)
        with torch.inference_mode():
            self._step(_ids(streams, length), self._cache, last_only=True)

    def step(self, streams: int) -> None:
        with torch.inference_mode():
            self._step(_ids(streams, 1), self._cache)


class HuggingFace:
    def __init__(self, directory: Path, kind: str) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, kind)).eval()
        self.size = sum(weight.nbytes for weight in self._model.parameters())

    def read(self, streams: int, length: int) -> None:
        with torch.inference_mode():
            self._cache = self._model(_ids(streams, length), use_cache=True, logits_to_keep=1).past_key_values

    def step(self, streams: int) -> None:
        with torch.inference_mode():
            self._model(_ids(streams, 1), past_key_values=self._cache, use_cache=True)


class LlamaCpp:
    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self._c: Any = llama_cpp
        self._silent = self._c.llama_log_callback(_ignore)
        self._c.llama_log_set(self._silent, None)
        self._model = self._c.llama_model_load_from_file(str(path).encode(), self._c.llama_model_default_params())
        asked = self._c.llama_context_default_params()
        # Every stream has an equal share of the context.
        asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max = CAPACITY * STREAMS, PROMPT, PROMPT, STREAMS
        asked.n_threads = asked.n_threads_batch = threads
        self._context = self._c.llama_init_from_model(self._model, asked)
        self._memory = self._c.llama_get_memory(self._context)
        self.size = int(self._c.llama_model_size(self._model))
        self._ends: list[int] = []

    def read(self, streams: int, length: int) -> None:
        self._c.llama_memory_clear(self._memory, True)
        self._ends = [0] * streams
        for stream in range(streams):
            self._decode([(stream, int(token)) for token in _ids(1, length)[0]], scored=1)

    def step(self, streams: int) -> None:
        self._decode(
            [(stream, int(token)) for stream, (token,) in enumerate(_ids(streams, 1).tolist())], scored=streams
        )

    def _decode(self, tokens: list[tuple[int, int]], scored: int) -> None:
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, (stream, token) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, self._ends[stream]
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, stream
            batch.logits[place] = place >= len(tokens) - scored
            self._ends[stream] += 1
        status = self._c.llama_decode(self._context, batch)
        self._c.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode says {status}")
        self._c.llama_get_logits_ith(self._context, -1)


@dataclass
class Seconds:
    """Seconds of a token or a prompt, round by round."""

    decode: dict[int, list[float]] = field(default_factory=lambda: {context: [] for context in CONTEXTS})
    prompt: list[float] = field(default_factory=list[float])
    streams: list[float] = field(default_factory=list[float])


def _ids(streams: int, length: int) -> Tensor:
    """The same tokens for every candidate."""
    return torch.randint(1000, 9000, (streams, length), generator=torch.Generator().manual_seed(length))


def _ignore(level: int, text: bytes, data: object) -> None:
    """Silence llama.cpp's output."""


def _timed(work: Callable[[], object], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def run(candidate: Candidate, seconds: Seconds) -> None:
    """One round."""
    for context in CONTEXTS:
        candidate.read(1, context)
        candidate.step(1)
        seconds.decode[context].append(_timed(lambda: candidate.step(1), NEW))
    seconds.prompt.append(_timed(lambda: candidate.read(1, PROMPT)))
    candidate.read(STREAMS, CONTEXTS[0])
    candidate.step(STREAMS)
    seconds.streams.append(_timed(lambda: candidate.step(STREAMS), NEW_STREAMS) / STREAMS)


def bandwidth() -> float:
    """Memory bandwidth of all threads in bytes/s; the best of a few runs."""
    large = torch.ones(1 << 27, dtype=torch.float32)
    return large.nbytes / min(_timed(large.sum) for _ in range(5))


def candidates(directory: Path, threads: int, folder: Path) -> Iterator[tuple[str, Callable[[], Candidate]]]:
    for kind in ("float32", "bfloat16", "int8", "int4"):
        yield f"anyformer {kind}", lambda kind=kind: Ours(directory, kind)
    for kind in ("float32", "bfloat16"):
        yield f"Hugging Face {kind}", lambda kind=kind: HuggingFace(directory, kind)
    for kind in ("bf16", "q8_0", "q4_1", "q4_0"):
        yield f"llama.cpp {kind}", lambda kind=kind: LlamaCpp(_converted(directory, folder, kind), threads)


def _converted(directory: Path, folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.gguf"
    if not path.exists():
        model, tokenizer = af.load(directory)
        af.save_gguf(model, path, tokenizer=tokenizer, kind=kind)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="candidates whose names begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found: dict[str, tuple[Candidate, Seconds]] = {}
        for name, make in candidates(arguments.directory, arguments.threads, folder):
            if arguments.only and not any(name.startswith(some) for some in arguments.only):
                continue
            try:
                found[name] = make(), Seconds()
            except ImportError as error:
                print(f"left out: {name} ({error})")
        for _ in range(arguments.rounds):
            for candidate, seconds in found.values():
                run(candidate, seconds)
        report(found, bandwidth())


def report(found: dict[str, tuple[Candidate, Seconds]], memory: float) -> None:
    """Print the table."""
    heads = ["", *(f"decode {context}" for context in CONTEXTS), "GB/s", "prompt", f"{STREAMS} streams", "weights"]
    rows = [heads]
    for name, (candidate, seconds) in found.items():
        steps = {context: 1 / statistics.median(taken) for context, taken in seconds.decode.items()}
        rows.append(
            [
                name,
                *(f"{speed:.0f}" for speed in steps.values()),
                f"{candidate.size * steps[CONTEXTS[0]] / 1e9:.1f}",
                f"{PROMPT / statistics.median(seconds.prompt):.0f}",
                f"{1 / statistics.median(seconds.streams):.0f}",
                f"{candidate.size / 1e6:.0f} MB",
            ]
        )
    rows.insert(1, ["---", *["---:"] * (len(heads) - 1)])
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"\ntokens a second; memory gives {memory / 1e9:.1f} GB/s to {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
