"""README's table "How well, and how fast", measured on this machine: each row by a benchmark, beside its peers.

    python benchmarks/readme.py --data shared/data --nanogpt PATH/TO/nanoGPT --model SMOLLM2.gguf --encoder MINILM
    python benchmarks/readme.py --rows train decode          # some of the rows, by their keys
    python benchmarks/readme.py --long                       # those that take half an hour and more as well

Prints one column of README's table, under the processor's name; a row whose data, model or peer is missing says so.
Nothing else should run on the machine meanwhile.

    shakespeare  3 min     train   5 min     decode  3 min     embed     4 min
    ten         11 min     bleu   45 min     sst2   25 min     sts      30 min, with --long

Needs what the benchmarks of the rows need: see `python benchmarks/NAME.py --help`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

Table = dict[str, dict[str, str]]
"""Cells of a benchmark's table, by candidate and column."""


class Row(NamedTuple):
    """One line of README's table."""

    what: str
    command: str
    """A benchmark and its flags; names in braces are options of this program."""
    figures: Callable[[Table], str]
    is_long: bool = False


def beside(column: str, ours: str, *peers: str) -> Callable[[Table], str]:
    """Our speed as 1, and the time that each peer takes for the same: each the fastest candidate that begins so."""

    def figures(table: Table) -> str:
        best = {
            name: max((number(cells[column]) for key, cells in table.items() if key.startswith(name)), default=0.0)
            for name in (ours, *peers)
        }
        mine = best.pop(ours)
        if not mine:
            raise KeyError(ours)
        times = [f"{PEERS.get(name, name)} {mine / speed:.1f}" for name, speed in best.items() if speed]
        return longer(times)

    return figures


def longer(times: Sequence[str]) -> str:
    """The cell of a row in which our time is 1."""
    return f"{', '.join(times)} times as long" if times else "no peer is installed"


def slower(column: str, *peers: str) -> Callable[[Table], str]:
    """The time that each peer takes for what we do in 1, where the benchmark has measured them in turns."""

    def figures(table: Table) -> str:
        times = {
            name: min((number(cells[column]) for key, cells in table.items() if key.startswith(name)), default=0.0)
            for name in peers
        }
        told = [f"{PEERS.get(name, name)} {time:.1f}" for name, time in times.items() if time]
        return longer(told)

    return figures


PEERS = {
    "hf compiled": "`transformers` compiled",
    "nanogpt compiled": "nanoGPT compiled",
    "trainer bfloat16": "`transformers`' Trainer in bfloat16",
}
"""What README calls the candidates of benchmarks."""


def scored(column: str, ours: str, peer: str) -> Callable[[Table], str]:
    """A score and the seconds that it took, ours and a peer's."""

    def figures(table: Table) -> str:
        both = [f"{number(table[key][column]):.3f} in {number(table[key]['seconds']):,.0f} s" for key in (ours, peer)]
        return f"{both[0]}; {PEERS.get(peer, peer)} {both[1]}"

    return figures


_DECODING = "decoding.py {model} --rounds 5 --only anyformer&int4 llama.cpp&q4_0"
ROWS: dict[str, Row] = {
    "ten": Row(
        "Tiny Shakespeare, whole validation text, ten minutes",
        "shakespeare.py --data {data}/tinyshakespeare.txt --recipes ten --seeds 0",
        lambda table: f"{number(table['ten']['median']):.2f}; nanoGPT's README 1.4697, on a GPU",
        is_long=True,
    ),
    "shakespeare": Row(
        "the same in seconds",
        "shakespeare.py --data {data}/tinyshakespeare.txt --recipes quick --nanogpt {nanogpt}",
        lambda table: (
            f"{number(table['quick']['median']):.2f} in {number(table['quick']['seconds']):.0f} s; "
            f"nanoGPT's CPU recipe 1.88 in {number(table['nanoGPT, CPU recipe']['seconds']):.0f} s"
        ),
    ),
    "bleu": Row(
        "Multi30k, English to German, BLEU after 42 minutes",
        "multi30k.py --data-folder {data}/multi30k",
        lambda table: (
            f"{number(table['BLEU, lower-cased, Moses tokens']['English to German']):.1f}; "
            "published for that size 41.0 (Wu et al. 2021)"
        ),
        is_long=True,
    ),
    "train": Row(
        "a training step of GPT-2 (124M, 4 x 512), `--dtype int8`",
        "throughput.py --rows gpt2 --ours int8 --only compiled --steps 4 --nanogpt {nanogpt}",
        slower("us / it", "hf compiled", "nanogpt compiled"),
    ),
    "decode": Row(
        "a token of SmolLM2-135M in 4 bits",
        _DECODING,
        beside("decode 8", "anyformer int4", "llama.cpp q4_0"),
    ),
    "prompt": Row(
        "its prompt of 512 tokens",
        _DECODING,
        beside("prompt", "anyformer int4", "llama.cpp q4_0"),
    ),
    "streams": Row(
        "a token of 16 streams of it",
        _DECODING,
        beside("16 streams", "anyformer int4", "llama.cpp q4_0"),
    ),
    "embed": Row(
        "embedding sentences with MiniLM in int8",
        "embedding.py {encoder} --only int8",
        beside("sentences/s", "anyformer int8", "OpenVINO int8", "ONNX Runtime int8", "fastembed int8"),
    ),
    "sst2": Row(
        "fine-tuning MiniLM's encoder on SST-2, `--dtype int8`: accuracy, median of three seeds",
        "finetuning.py sst2 --data {data} --seeds 3 --only own&recipe&int8,trainer&bfloat16",
        scored("accuracy", "own recipe int8", "trainer bfloat16"),
        is_long=True,
    ),
    "sts": Row(
        "fine-tuning MiniLM on STS-B, `--dtype int8`: Spearman",
        "finetuning.py stsb --data {data} --only anyformer&int8,sentence-transformers",
        scored("spearman", "anyformer int8", "sentence-transformers"),
        is_long=True,
    ),
}


def number(cell: str) -> float:
    """The number of a cell."""
    return float(cell.replace(",", "").split()[0])


def read(output: str) -> Table:
    """The tables of a benchmark's output as one."""
    table: Table = {}
    heads: list[str] = []
    lines = [line for line in output.splitlines() if line.startswith("|")]
    for line, following in zip(lines, [*lines, ""][1:], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if following.startswith("| ---"):
            heads = cells[1:]
        elif not line.startswith("| ---"):
            table[cells[0]] = dict(zip(heads, cells[1:], strict=False))
    return table


def processor() -> str:
    """The processor's name, and what of it matters here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name, flags = facts.get("model name", "unknown processor"), facts.get("flags", "").split()
    units = [unit for flag, unit in (("amx_int8", "AMX"), ("avx512_vnni", "AVX512-VNNI")) if flag in flags]
    cores = sum(line.startswith("processor") for line in lines)
    return f"{name}, {cores} cores, {', '.join(units) or 'AVX2'}"


def measure(row: Row, places: dict[str, str], outputs: dict[str, str]) -> str:
    """The figures of a row; benchmarks that several rows share run once."""
    missing = [name for name in places if f"{{{name}}}" in row.command and not places[name]]
    if missing:
        return f"not measured: give {', '.join(f'--{name}' for name in missing)}"
    command = [part.replace("&", " ").format(**places) for part in row.command.split()]
    if row.command not in outputs:
        script = str(Path(__file__).with_name(command[0]))
        done = subprocess.run([sys.executable, script, *command[1:]], capture_output=True, text=True, check=False)
        outputs[row.command] = done.stdout
        print(done.stdout, done.stderr if done.returncode else "", file=sys.stderr, flush=True)
    try:
        return row.figures(read(outputs[row.command]))
    except (KeyError, ValueError) as error:
        return f"not measured: {command[0]} printed no {error}"


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="measure these only")
    parser.add_argument("--long", action="store_true", help="measure the long ones as well")
    parser.add_argument("--data", default="", help="the folder of sst2, stsb, multi30k and tinyshakespeare.txt")
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--model", default="", help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--encoder", default="", help="the directory of all-MiniLM-L6-v2")
    options = parser.parse_args()
    places = {name: getattr(options, name) for name in ("data", "nanogpt", "model", "encoder")}
    keys = options.rows or [key for key, row in ROWS.items() if options.long or not row.is_long]
    outputs: dict[str, str] = {}
    measured = [(ROWS[key].what, measure(ROWS[key], places, outputs)) for key in keys]
    print(f"| | {processor()} |\n| --- | --- |")
    for what, figures in measured:
        print(f"| {what} | {figures} |")


if __name__ == "__main__":
    main()
