"""Tokenizing 200 MB of text: anyformer beside `datasets.map`, with the same tokenizer and number of processes.

    python benchmarks/tokenizing.py [--megabytes 200] [--processes N] [--rounds 1]

The text is the standard library's source and, where it is there, tiny Shakespeare, repeated with the lines of each copy
rotated, so that no two documents are the same; one line of a jsonl file each. Every run is a process of its own, the
runs take turns, and the table has the best of each. anyformer reads the jsonl file and writes a token file. The peer is
timed for `map` alone, which reads an existing Arrow file, and including the reading of the jsonl file. CPU is the
processor time of all processes of a run, which other programs on shared cores hardly affect. Memory is the largest sum
of the proportional set sizes (PSS) of a run's processes, sampled four times a second. The ids of both must be the same.
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
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from anyformer.data.sources import documents, standard_library
from anyformer.data.token_files import TokenFile, tokenize
from anyformer.tokenizer import Tokenizer

SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
LONGEST = 100_000
"""Characters of a document: a longer one would be split by one of the two only."""


def write_text(path: Path, characters: int) -> int:
    """Write distinct documents, and return how many characters they have."""
    files = [*standard_library(), *([SHAKESPEARE] if SHAKESPEARE.exists() else [])]
    texts = ["".join(piece.text for piece in documents(file)) for file in files if file.stat().st_size]
    parts = [text[i : i + LONGEST] for text in texts for i in range(0, len(text), LONGEST)]
    written = copy = 0
    with path.open("w", encoding="utf-8") as file:
        while written < characters:
            for part in parts:
                lines = part.splitlines(keepends=True)
                turn = copy * 7919 % len(lines)
                text = "".join(lines[turn:] + lines[:turn])
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text)
                if written >= characters:
                    break
            copy += 1
    return written


def processor_time() -> float:
    """Processor time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ours(folder: Path, processes: int) -> dict[str, Any]:
    tokenizer = Tokenizer.load(folder)
    start, cpu = time.perf_counter(), processor_time()
    file = tokenize(documents(folder / "text.jsonl"), tokenizer, folder / "ours.bin", workers=processes)
    seconds, cpu = time.perf_counter() - start, processor_time() - cpu
    (folder / "busy").unlink()
    return {"seconds": seconds, "cpu": cpu, "digest": hashlib.sha256(file.ids.astype("<u4").tobytes()).hexdigest()}


def theirs(folder: Path, processes: int) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    backend = Tokenizer.load(folder).backend
    separator = Tokenizer.load(folder).separator

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids for e in backend.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        begun = time.perf_counter()
        data = datasets.load_dataset("json", data_files=str(folder / "text.jsonl"), split="train", cache_dir=cache)
        start, cpu = time.perf_counter(), processor_time()
        mapped = data.map(encode, batched=True, num_proc=processes, remove_columns=["text"])
        end, cpu = time.perf_counter(), processor_time() - cpu
        (folder / "busy").unlink()
        rows = mapped.with_format("numpy")["ids"]
        joined: list[Any] = []
        for row in rows:
            joined += [np.array([separator], "<u4"), np.asarray(row).astype("<u4")]
    digest = hashlib.sha256(np.concatenate(joined[1:]).tobytes()).hexdigest()
    return {"seconds": end - start, "cpu": cpu, "with reading": end - begun, "digest": digest}


def measured(system: str, folder: Path, processes: int) -> dict[str, Any]:
    """Run one candidate in a process of its own, sampling the memory of all its processes."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, __file__, "--run", system, "--folder", str(folder), "--processes", str(processes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, folder / "busy", peak))
    (folder / "busy").touch()
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{system} failed")
    return {**json.loads(out.splitlines()[-1]), "peak": peak[0]}


def watch(process: subprocess.Popen[str], busy: Path, peak: list[int]) -> None:
    tree = psutil.Process(process.pid)
    while process.poll() is None and busy.exists():
        total = 0
        try:
            for member in [tree, *tree.children(recursive=True)]:
                total += member.memory_full_info().pss
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
    parser.add_argument("--run", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps({"ours": ours, "theirs": theirs}[asked.run](asked.folder, asked.processes)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        characters = write_text(folder / "text.jsonl", asked.megabytes * 10**6)
        Tokenizer.train(documents(standard_library()), f"bpe:{asked.vocabulary}").save(folder)
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for _ in range(asked.rounds):
            for system, done in runs.items():
                done.append(measured(system, folder, asked.processes))
        tokens = len(TokenFile.open(folder / "ours.bin"))
    show(runs, characters, tokens, asked.processes)


def show(runs: dict[str, list[dict[str, Any]]], characters: int, tokens: int, processes: int) -> None:
    same = len({run["digest"] for done in runs.values() for run in done}) == 1
    best = {system: min(run["seconds"] for run in done) for system, done in runs.items()}
    cpu = {system: f"{min(run['cpu'] for run in done):.1f}" for system, done in runs.items()}
    reading = min(run["with reading"] for run in runs["theirs"])
    peak = {system: max(run["peak"] for run in done) / 2**20 for system, done in runs.items()}
    table = Table(title=f"{characters / 1e6:.0f} MB of text, {tokens:,} tokens, {processes} processes")
    for column in ("", "seconds", "MB/s", "CPU seconds", "peak memory"):
        table.add_column(column, justify="left" if not column else "right")
    rows = (
        ("anyformer: jsonl to token file", best["ours"], cpu["ours"], peak["ours"]),
        ("datasets: map alone", best["theirs"], cpu["theirs"], peak["theirs"]),
        ("datasets: jsonl, Arrow, map", reading, "", peak["theirs"]),
    )
    for name, seconds, processor, memory in rows:
        table.add_row(name, f"{seconds:.1f}", f"{characters / 1e6 / seconds:.1f}", processor, f"{memory:,.0f} MiB")
    console = Console()
    ratio = best["theirs"] / best["ours"]
    console.print(table)
    ratio = best["theirs"] / best["ours"]
    console.print(f"ids equal: {'yes' if same else 'NO'}; map alone takes {ratio:.2f} times as long")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
