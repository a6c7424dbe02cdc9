"""Tokenizing 200 MB: anyformer beside `tokenizers` alone, `datasets.map` and datatrove.

    python benchmarks/tokenizing.py [--megabytes 200] [--processes N] [--rounds 1] [--systems ours tokenizers datatrove]

The text is the standard library's source and, where it is there, tiny Shakespeare, repeated with the lines of each copy
rotated, so that no two documents are the same; one line each of jsonl files, four for each process. All use the same
tokenizer and number of processes (`tokenizers` as many threads). Every run is a process of its own, the runs take
turns, and the table has the best of each. anyformer divides the text into shards and joins their ids in one token file;
reading the text before that for the split is a line of its own. `tokenizers` encodes batches that one thread reads and
writes the ids to one file; datatrove writes one file for each jsonl file; `datasets.map` is timed alone, reading an
Arrow file that is there already. CPU is the processor time of all processes of a run, which other programs on shared
cores hardly affect. Memory is the largest sum of the proportional set sizes (PSS) of a run's processes, sampled four
times a second. The ids of all must be the same. Systems that are not installed are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from anyformer.data.corpus import Corpus, Part, standard_library
from anyformer.data.disk_cache import Cache
from anyformer.data.documents import documents, shards
from anyformer.data.shards import measure_shards, tokenize_shards
from anyformer.data.token_files import TokenFile
from anyformer.processes import ProcessExecutor
from anyformer.tokenizer import Tokenizer

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
LONGEST = 100_000
"""Characters of a document: a longer one would be split by one of them only."""
BATCH = 1000


def write_text(paths: list[Path], characters: int) -> int:
    """Write distinct documents, and return how many characters they have."""
    files = [*standard_library(), *([SHAKESPEARE] if SHAKESPEARE.exists() else [])]
    texts = ["".join(piece.text for piece in documents(file)) for file in files if file.stat().st_size]
    parts = [text[i : i + LONGEST] for text in texts for i in range(0, len(text), LONGEST)]
    written = copy = part = 0
    for number, path in enumerate(paths, start=1):
        with path.open("w", encoding="utf-8") as file:
            while written < characters * number // len(paths):
                lines = parts[part].splitlines(keepends=True)
                turn = copy * 7919 % len(lines)
                text = "".join(lines[turn:] + lines[:turn])
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text)
                part = (part + 1) % len(parts)
                copy += part == 0
    return written


def processor_time() -> float:
    """Processor time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def processor_time_of(process: psutil.Process) -> float:
    """Processor time of another process."""
    times = process.cpu_times()
    return times.user + times.system


def timed(work: Callable[[], object]) -> dict[str, float]:
    start, cpu = time.perf_counter(), processor_time()
    work()
    return {"seconds": time.perf_counter() - start, "cpu": processor_time() - cpu}


def ours(folder: Path, processes: int, text: list[Path]) -> dict[str, Any]:
    cache, path = Cache(folder / "cache"), folder / "ours.bin"

    def split() -> None:
        with ProcessExecutor(processes, 1) as executor:
            Corpus(text, measure=partial(measure_shards, cache, "split", executor))

    def tokenize() -> None:
        parts = [(Part(shard), ("all", "all")) for shard in shards(text)]
        with ProcessExecutor(processes, 1) as executor:
            tokenize_shards(
                cache, "ours", executor, parts, Tokenizer.load(folder), {"all": path}, progress=lambda: None
            )

    result = {"split": timed(split), **timed(tokenize)}
    (folder / "busy").unlink()
    return {**result, "digest": digest([TokenFile.open(path).ids])}


def library(folder: Path, processes: int, text: list[Path]) -> dict[str, Any]:
    tokenizer = Tokenizer.load(folder)

    def batches() -> Iterable[list[str]]:
        batch: list[str] = []
        for path in text:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    batch.append(json.loads(line)["text"])
                    if len(batch) == BATCH:
                        yield batch
                        batch = []
        yield batch

    def encode() -> None:
        with (folder / "library.bin").open("wb") as file:
            for batch in batches():
                for encoding in tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False):
                    file.write(np.array([*encoding.ids, tokenizer.separator], "<u2").tobytes())

    result = timed(encode)
    (folder / "busy").unlink()
    return {**result, "digest": digest([np.fromfile(folder / "library.bin", "<u2")[:-1]])}


def datatrove(folder: Path, processes: int, text: list[Path]) -> dict[str, Any]:
    from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
    from datatrove.pipeline.tokens import DocumentTokenizer  # pyright: ignore[reportMissingImports]

    tokenizer = Tokenizer.load(folder)
    separator = tokenizer.token(tokenizer.separator or 0)
    out = folder / "datatrove"
    pipeline = [
        JsonlReader(str(text[0].parent), glob_pattern="*.jsonl"),
        DocumentTokenizer(
            str(out), str(folder / "tokenizer.json"), eos_token=separator, shuffle_documents=False, batch_size=BATCH
        ),
    ]
    logs = str(folder / "logs")
    result = timed(LocalPipelineExecutor(pipeline, tasks=len(text), workers=processes, logging_dir=logs).run)
    (folder / "busy").unlink()
    return {**result, "digest": digest([np.fromfile(path, "<u2") for path in sorted(out.glob("*.ds"))], ended=True)}


def map_alone(folder: Path, processes: int, text: list[Path]) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.load(folder)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encodings = tokenizer.backend.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"ids": [[*encoding.ids, tokenizer.separator] for encoding in encodings]}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        data = datasets.load_dataset("json", data_files=list(map(str, text)), split="train", cache_dir=cache)
        mapped: list[Any] = []
        result = timed(
            lambda: mapped.append(data.map(encode, batched=True, num_proc=processes, remove_columns=["text"]))
        )
        (folder / "busy").unlink()
        rows = [np.asarray(row).astype("<u2") for row in mapped[0].with_format("numpy")["ids"]]
    return {**result, "digest": digest(rows, ended=True)}


def digest(arrays: list[Any], ended: bool = False) -> str:
    """A hash of ids; where they are `ended`, without the separator after the last of them."""
    whole = hashlib.sha256()
    for index, array in enumerate(arrays, start=1):
        whole.update(np.ascontiguousarray(array[:-1] if ended and index == len(arrays) else array, "<u2"))
    return whole.hexdigest()


SYSTEMS = {
    "ours": ("anyformer", ours),
    "tokenizers": ("tokenizers, in batches", library),
    "datasets": ("datasets: map alone", map_alone),
    "datatrove": ("datatrove", datatrove),
}


def measured(system: str, folder: Path, processes: int) -> dict[str, Any]:
    """Run one candidate in a process of its own, sampling the memory of all its processes."""
    is_alone = system == "tokenizers"
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": str(is_alone).lower(),
        "RAYON_NUM_THREADS": str(processes if is_alone else 1),
        "HF_DATASETS_OFFLINE": "1",
    }
    command = [sys.executable, __file__, "--run", system, "--folder", str(folder), "--processes", str(processes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak, cpu = [0], dict[int, float]()
    watcher = threading.Thread(target=watch, args=(process, folder / "busy", peak, cpu))
    (folder / "busy").touch()
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{system} failed")
    result = json.loads(out.splitlines()[-1])
    # datatrove does not wait for its processes, whose time the system then tells nobody.
    return {**result, "peak": peak[0], "cpu": max(result["cpu"], sum(cpu.values()))}


def watch(process: subprocess.Popen[str], busy: Path, peak: list[int], cpu: dict[int, float]) -> None:
    tree = psutil.Process(process.pid)
    while process.poll() is None and busy.exists():
        total = 0
        try:
            for member in [tree, *tree.children(recursive=True)]:
                total += member.memory_full_info().pss
                if member != tree:
                    cpu[member.pid] = processor_time_of(member)
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total)
        time.sleep(0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS])
    parser.add_argument("--run", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        text = sorted((asked.folder / "text").iterdir())
        print(json.dumps(SYSTEMS[asked.run][1](asked.folder, asked.processes, text)))
        return
    systems = [system for system in asked.systems if system == "ours" or find_spec(system)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "text").mkdir()
        paths = [folder / "text" / f"{index:03}.jsonl" for index in range(4 * asked.processes)]
        characters = write_text(paths, asked.megabytes * 10**6)
        Tokenizer.train(documents(standard_library()), f"bpe:{asked.vocabulary}").save(folder)
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
        for _ in range(asked.rounds):
            for system, done in runs.items():
                done.append(measured(system, folder, asked.processes))
                print(system, done[-1], file=sys.stderr, flush=True)
        tokens = len(TokenFile.open(folder / "ours.bin"))
    show(runs, characters, tokens, asked.processes)


def show(runs: dict[str, list[dict[str, Any]]], characters: int, tokens: int, processes: int) -> None:
    table = Table(title=f"{characters / 1e6:.0f} MB of text, {tokens:,} tokens, {processes} processes")
    for column in ("", "seconds", "CPU seconds", "MB per CPU second", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")

    def add(name: str, done: list[dict[str, Any]], peak: str) -> None:
        cpu = min(run["cpu"] for run in done)
        seconds = min(run["seconds"] for run in done)
        table.add_row(name, f"{seconds:.1f}", f"{cpu:.1f}", f"{characters / 1e6 / cpu:.2f}", peak)

    for system, done in runs.items():
        add(SYSTEMS[system][0], done, f"{max(run['peak'] for run in done) / 2**20:,.0f} MiB")
    add("anyformer: the split", [run["split"] for run in runs["ours"]], "")
    Console().print(table)
    same = len({run["digest"] for done in runs.values() for run in done}) == 1
    print(f"ids equal: {'yes' if same else 'NO'}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
