"""Does a comparison find what is known? Three claims of the literature, at a budget of minutes on two cores.

    python benchmarks/compare.py                          # about 40 minutes: five families, then translation
    python benchmarks/compare.py --data notes.txt --pairs multi30k --out found
    python benchmarks/compare.py --tokens 100000 --steps 100 --seeds 1        # a try in minutes

    writing        decoders ahead of BERT: bits per byte of the second half of held-out pieces, given the first, one
                   token after the other. BERT reads what there is and a mask behind it, so each of its predictions is a
                   probability of the next token, and their product one of the text (Wang & Cho 2019)
    cloze          BERT ahead of decoders where there is context on both sides: which of four words was removed?
    translation    the encoder-decoder ahead of a decoder that reads "source </s> target", at equal parameters outside
                   embeddings, on the same pairs in the same batches, with the loss of the target alone (Multi30k,
                   English to German): bits per byte of the references of test_2016_flickr, and BLEU of greedy
                   translations

What was measured is printed, whether it agrees or not, with 95% intervals of seeds and held-out pieces and Holm's
correction; findings.json in --out has it, and compare.html is the page of the first two. A comparison that was stopped
goes on by the same command.

Needs `pip install 'anyformer[bench]'`, a text (default: tiny Shakespeare), and the folder of Multi30k's files
{train,val,test_2016_flickr}.{en,de}.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from typing_extensions import override

import anyformer as af
from anyformer.compare.compare import compare
from anyformer.compare.corpus import FromStart, SharedText, cut, prepare, window_objective
from anyformer.compare.matching import matched, parameters_outside_embeddings, read_models
from anyformer.compare.result import Comparison, Panel, Verdict
from anyformer.console import Console
from anyformer.data.batch import IGNORED, Batch
from anyformer.generation.inference import evaluating
from anyformer.generation.prompt import pad
from anyformer.model import Transformer, build
from anyformer.training.config import TrainConfig, default_learning_rate
from anyformer.training.prepare import fit_model
from anyformer.training.run import Pretraining, run

FAMILIES = ("gpt2", "llama", "bert", "t5", "transformer")
DECODERS, ENCODER = ("gpt2", "llama"), "bert"
TRANSLATORS = ("transformer", "llama")
"""The encoder-decoder, and the decoder that it is compared with."""
PIECES, ROWS, CONTEXT, LONGEST = 48, 64, 128, 60
WRITING = Panel(
    name="writing",
    title="Writing: the rest of a text given its beginning, from left to right",
    measure="bits per byte",
    lower_is_better=True,
)
TRANSLATION = Panel(
    name="translation",
    title="Translation: the reference given the source",
    measure="bits per byte",
    lower_is_better=True,
)


def writing(comparison: Comparison, out: Path) -> tuple[Panel, list[Verdict]]:
    """Decoders and BERT as writers."""
    text = prepare(out / "data", (), "text", CONTEXT, None, None)
    pieces = text.pieces(PIECES)
    half = cut(text.window, 0.5)
    weights = text.bytes_of(pieces[:, half:]).astype(np.float64)
    found: dict[str, Pieces] = {}
    for each in comparison.models:
        if each.name in (*DECODERS, ENCODER):
            models = [af.load(out / path, torch.float32)[0] for path in each.runs]
            totals = [_left_to_right(model, text, pieces, half) / math.log(2) for model in models]
            found[each.name] = Pieces(np.stack(totals), weights)
    return compare_members(WRITING, found)


def _left_to_right(model: Transformer, text: SharedText, pieces: Any, half: int) -> Any:
    """[pieces] nats of all tokens from `half` on, each given those before it."""
    objective = window_objective(model.config, text.tokenizer)
    with evaluating(model), torch.inference_mode():
        if isinstance(objective, FromStart):
            batch = objective(pieces, np.random.default_rng(0))
            logits = model(torch.from_numpy(batch.tokens)).logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(pieces), reduction="none")
            return losses[:, half:].double().sum(dim=1).numpy()
        tokenizer = text.tokenizer
        total = np.zeros(len(pieces))
        for place in range(half, pieces.shape[1]):
            column = np.ones((len(pieces), 1), dtype=np.int64)
            row = [column * tokenizer.cls, pieces[:, :place], column * tokenizer.mask, column * tokenizer.sep]
            hidden = model(torch.from_numpy(np.concatenate(row, axis=1)), return_logits=False).hidden[:, place + 1]
            logits = model.head(hidden, model.token_embedding.weight).float()
            losses = F.cross_entropy(logits, torch.from_numpy(pieces[:, place]), reduction="none")
            total += losses.double().numpy()
        return total


class Translation(Pretraining):
    """Pairs for a model of any stacks: a decoder reads the source, its end, and the target, in one row."""

    @override
    def __init__(self, config: TrainConfig, console: Console, *, decoder: af.ModelConfig | None = None) -> None:
        super().__init__(config, console)
        if decoder is None:
            return
        tokenizer, batches = self.data.tokenizer, self.batches
        self.decoder = fit_model(decoder.replace(max_length=2 * LONGEST + 2), tokenizer, None)
        self.model_config = self.decoder
        assert tokenizer.pad is not None

        def validation(every: int = 1) -> Iterator[Batch]:
            return (in_one_row(batch, tokenizer.pad or 0) for batch in batches.validation(every))

        self.batches = replace(
            batches, batch=lambda step: in_one_row(batches.batch(step), tokenizer.pad or 0), validation=validation
        )

    @override
    def build(self) -> Transformer:
        return build(self.model_config)

    @override
    def sample(self, model: Transformer) -> Any:
        del model
        from anyformer.training.sample import Sample

        return Sample((), ())


def in_one_row(batch: Batch, padding: int) -> Batch:
    """Pairs as a decoder reads them: source, its end, target, then padding; only targets are learned."""
    assert batch.source is not None
    rows: list[tuple[list[int], list[int]]] = []
    for index, (source, target) in enumerate(zip(batch.source, batch.targets, strict=True)):
        kept = source if batch.source_mask is None else source[batch.source_mask[index]]
        written = target[target != IGNORED].tolist()
        rows.append(([*kept.tolist(), *written[:-1]], [*[IGNORED] * (len(kept) - 1), *written]))
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = np.full((len(rows), longest), padding, dtype=np.int64)
    targets = np.full_like(tokens, IGNORED)
    for index, (read, learned) in enumerate(rows):
        tokens[index, : len(read)], targets[index, : len(learned)] = read, learned
    return Batch(tokens, targets)


def translators() -> dict[str, Any]:
    """The two models, with as many parameters outside embeddings."""
    what = "parameters outside embeddings"
    models = matched(read_models(TRANSLATORS, "parameters"), parameters_outside_embeddings, what)
    return {model.name: model.config for model in models}


def train_translator(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train one of them, and write down the nats of each reference and its translations."""
    pairs, out = arguments.pairs, arguments.out / "translation"
    configs = translators()
    encoder_decoder, own = configs[TRANSLATORS[0]], configs[name]
    config = TrainConfig(
        preset=TRANSLATORS[0],
        model=encoder_decoder,
        objective="seq2seq",
        context=LONGEST,
        source=str(pairs / "train.en.gz"),
        target=str(pairs / "train.de.gz"),
        validation=tuple(str(pairs / f"val.{language}.gz") for language in ("en", "de")),
        tokenizer="bpe:4096",
        batch_tokens=2048,
        steps=arguments.steps,
        label_smoothing=0.0,
        learning_rate=default_learning_rate(own),
        seed=seed,
        compile=False,
        device="cpu",
        name=f"{name}-{seed}",
        runs=out,
        log_every=50,
    )
    decoder = own if own.is_decoder_only else None
    directory = out / f"{name}-{seed}"
    resume = directory if (directory / "config.yaml").is_file() else None
    run(config, partial(Translation, decoder=decoder), resume=resume, console=Console(quiet=True))
    model, tokenizer = af.load(directory, torch.float32)
    assert tokenizer is not None
    sources, references = (_lines(pairs, language) for language in ("en", "de"))
    nats = _reference_nats(model, tokenizer, sources, references)
    translations = _translate(model, tokenizer, sources)
    content = {"nats": nats, "translations": translations, "bytes": [len(text.encode()) for text in references]}
    (out / f"{name}-{seed}.json").write_text(json.dumps(content))


def _lines(pairs: Path, language: str) -> list[str]:
    with gzip.open(pairs / f"test_2016_flickr.{language}.gz", "rt", encoding="utf-8", newline="\n") as lines:
        return [line.rstrip("\n") for line in lines]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [[*tokenizer.encode(text, special=False)[: LONGEST - 1], tokenizer.eos] for text in texts]


def _reference_nats(
    model: Transformer, tokenizer: Any, sources: Sequence[str], references: Sequence[str]
) -> list[float]:
    """The loss of each reference, its end included."""
    found: list[float] = []
    pairs = [*zip(_ids(tokenizer, sources), _ids(tokenizer, references), strict=True)]
    with evaluating(model), torch.inference_mode():
        for begin in range(0, len(pairs), ROWS):
            chunk = pairs[begin : begin + ROWS]
            source, mask = pad([read for read, _ in chunk], tokenizer.pad, model.device)
            target, known = pad([written for _, written in chunk], tokenizer.pad, model.device)
            start = torch.full((len(chunk), 1), model.config.special_tokens.decoder_start or 0)
            batch = Batch(
                torch.cat([start, target[:, :-1]], dim=1).numpy(),
                target.masked_fill(~known, IGNORED).numpy(),
                source=source.numpy(),
                source_mask=mask.numpy(),
            )
            if model.config.is_decoder_only:
                batch = in_one_row(batch, tokenizer.pad)
            tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(np.asarray(batch.targets))
            given = {} if batch.source is None else {"source": source, "source_mask": mask}
            logits = model(tokens, **given).logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
            found += losses.double().sum(dim=1).tolist()
    return found


def _translate(model: Transformer, tokenizer: Any, sources: Sequence[str]) -> list[str]:
    """Greedy translations."""
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    ids, texts = _ids(tokenizer, sources), [""] * len(sources)
    for begin in range(0, len(order), ROWS):
        members = order[begin : begin + ROWS]
        groups: dict[int, list[int]] = {}
        for index in members:
            groups.setdefault(len(ids[index]), []).append(index)
        for rows in groups.values():  # of one length each, so that nothing is padded
            prompt = torch.tensor([ids[index] for index in rows])
            made = af.generate_ids(model, prompt, max_new_tokens=LONGEST - 1)
            for index, row in zip(rows, made.tolist(), strict=True):
                written = row[: row.index(tokenizer.eos)] if tokenizer.eos in row else row
                texts[index] = tokenizer.decode(written)
    return texts


def translation(arguments: argparse.Namespace) -> tuple[Panel, list[Verdict], dict[str, list[float]]]:
    """Both translators, every seed, two at a time; with BLEU by seed."""
    from sacrebleu.metrics.bleu import BLEU

    out = arguments.out / "translation"
    out.mkdir(parents=True, exist_ok=True)
    left = [(name, seed) for seed in range(arguments.seeds) for name in TRANSLATORS]
    left = [(name, seed) for name, seed in left if not (out / f"{name}-{seed}.json").exists()]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.processes))}
    while left:
        now, left = left[: arguments.processes], left[arguments.processes :]
        common = [sys.executable, __file__, "--pairs", str(arguments.pairs), "--out", str(arguments.out)]
        jobs = [
            subprocess.Popen(
                [*common, "--steps", str(arguments.steps), "--translator", name, "--seed", str(seed)], env=environment
            )
            for name, seed in now
        ]
        if any(job.wait() for job in jobs):
            raise SystemExit("Training a translator failed.")
    references = _lines(arguments.pairs, "de")
    found: dict[str, Pieces] = {}
    scores: dict[str, list[float]] = {}
    for name in TRANSLATORS:
        read = [json.loads((out / f"{name}-{seed}.json").read_text()) for seed in range(arguments.seeds)]
        totals = np.array([each["nats"] for each in read]) / math.log(2)
        found[name] = Pieces(totals, np.array(read[0]["bytes"], dtype=np.float64))
        scores[name] = [BLEU().corpus_score(each["translations"], [references]).score for each in read]
    return (*compare_members(TRANSLATION, found), scores)


def verdict_of(verdicts: Sequence[Verdict], ahead: str, behind: str) -> str:
    """What may be said about a claim that one model is ahead of another."""
    found = next(each for each in verdicts if {each.a, each.b} == {ahead, behind})
    if found.verdict != "better":
        said = "not distinguishable at this budget"
    else:
        said = "found" if found.a == ahead else "NOT found: the other one is better"
    sign = 1 if found.a == ahead else -1
    low, high = sorted(sign * bound for bound in found.interval)
    return f"{sign * found.difference:+.4f} ({low:+.4f} to {high:+.4f}) {found.measure}: {said}"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared / "tinyshakespeare.txt", help="text of the first two")
    parser.add_argument("--pairs", type=Path, default=shared / "multi30k", help="the folder of Multi30k")
    parser.add_argument("--out", type=Path, default=Path("comparisons/known"))
    parser.add_argument("--tokens", type=float, default=1_500_000, help="of text, for each family and seed")
    parser.add_argument("--steps", type=int, default=1200, help="of each translator and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=("families", "translation"), help="one half of it")
    parser.add_argument("--translator", choices=TRANSLATORS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure and print; returns 0 whatever was found, as it is what was measured."""
    arguments = options()
    if arguments.translator:
        train_translator(arguments.translator, arguments.seed, arguments)
        return 0
    began, content = time.perf_counter(), dict[str, Any]()
    lines: list[tuple[str, str]] = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only != "translation":
        if not arguments.data.exists():
            print(f"skipped: there is no {arguments.data}: give a text with --data.")
            return 0
        out = arguments.out / "families"
        budget: Mapping[str, Any] = {"tokens": arguments.tokens, "seeds": arguments.seeds}
        found = compare(FAMILIES, data=str(arguments.data), out=out, processes=arguments.processes, **budget)
        panel, verdicts = writing(found, out)
        content["writing"] = {"panel": asdict(panel), "verdicts": [asdict(each) for each in verdicts]}
        lines += [(f"writing: {name} ahead of {ENCODER}", verdict_of(verdicts, name, ENCODER)) for name in DECODERS]
        cloze = [each for each in found.verdicts if each.panel == "cloze"]
        if cloze:
            lines += [(f"cloze: {ENCODER} ahead of {name}", verdict_of(cloze, ENCODER, name)) for name in DECODERS]
        content["cloze"] = [asdict(each) for each in cloze]
    if arguments.only != "families":
        if not (arguments.pairs / "train.en.gz").is_file():
            print(f"skipped: {arguments.pairs} has no train.en.gz (Multi30k, task 1): give --pairs.")
            return 0
        panel, verdicts, bleu = translation(arguments)
        first, second = TRANSLATORS
        lines.append((f"translation: {first} ahead of {second}", verdict_of(verdicts, first, second)))
        lines += [(f"  BLEU of {name}", ", ".join(f"{score:.2f}" for score in scores)) for name, scores in bleu.items()]
        content["translation"] = {"panel": asdict(panel), "verdicts": [asdict(each) for each in verdicts], "bleu": bleu}
    lines.append(("in all", f"{(time.perf_counter() - began) / 60:.1f} min   (bar 40)"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    (arguments.out / "findings.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
