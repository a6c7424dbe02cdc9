"""Pages on runs: report.html in a run directory, and a page on several runs.

`charts` has their curves, and `gains` what fine-tuning gained.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import atomic
from anyformer.pages.formatting import clock, count, fixed, flops, parameters, perplexity, setting, share, si, whole
from anyformer.pages.render import render, require_page
from anyformer.runs.directory import base_name
from anyformer.runs.listing import (
    Line,
    Run,
    Terms,
    default_settings,
    differences,
    flatten,
    number,
    passages,
    read_run,
)
from anyformer.runs.report.charts import comparison_data, report_data, tokens_at
from anyformer.runs.report.gains import gains

REPORT = "report.html"

_SHAPE = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "max_length", "attention.heads"),
    *("attention.kv_heads", "feed_forward.width", "feed_forward.activation", "position.kind", "norm.kind"),
    *("norm.placement", "embedding.tied", "head.kind", "dropout"),
)
"""Settings of the model that are shown whatever their values."""

_SELDOM = (
    *("field", "max_record_bytes", "source", "target", "document_masking", "whole_word_masking", "label_smoothing"),
    *("workers", "cache", "batch_tokens", "grad_accumulation", "beta2", "average", "gradient_checkpointing"),
    *("compile", "engine", "processes", "zero_stage", "tensor_parallel", "context_parallel", "save_every"),
    *("keep", "keep_optimizer", "log_every", "track"),
    "validation",
)
"""Settings of a run that are folded away where they have their default."""

_OWN = (
    *("preset", "data", "tokenizer", "steps", "minutes", "evaluate_every", "track", "model.model_type"),
    "model.embedding.padding",
)
"""Settings that every run has its own of: a difference would say nothing. So have the tokenizer's own tokens."""

COLUMNS: dict[str, Callable[[Run], str]] = {
    "name": lambda run: run.name,
    "preset": lambda run: run.preset or "–",
    "parameters": lambda run: count(run.parameters),
    "state": lambda run: run.state,
    "steps": lambda run: whole(run.step),
    "tokens": lambda run: count(run.tokens),
    "time": lambda run: clock(run.seconds),
    "tokens/s": lambda run: count(run.tokens_per_second),
    "loss": lambda run: fixed(run.validation_loss),
    "bits/byte": lambda run: fixed(run.bits_per_byte),
}
"""Columns of a table of runs; `loss` is that of the validation text."""

TEXTS = ("name", "preset", "state")
"""The columns that hold no number."""


def write_report(
    directory: Path, defaults: Mapping[str, Any], file: Path | None = None, terms: Terms | None = None
) -> Path:
    """Write a run's page anew, and return its path.

    Args:
        defaults: the default of each setting of a run; the page marks settings that differ.
        file: where to; None: report.html in the run directory.
        terms: how the page speaks of the run; None: as of one that trains on text.

    Raises:
        UserError: no such run directory, the file is there already and no such page, or the disk refuses. What was
            there before stays as it was.
    """
    run = read_run(directory)
    run.terms = terms or run.terms
    if file is not None:
        require_page(file)
    path = file or directory / REPORT
    atomic.write(path, render("page.html", page(run, defaults), __name__))
    return path


def write_comparison(runs: Sequence[Run], file: Path) -> Path:
    """Write a page with the curves of runs over each other. Raises UserError as `write_report`."""
    require_page(file)
    atomic.write(file, render("comparison.html", comparison(runs), __name__))
    return file


def page(run: Run, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of page.html; `defaults` are those of a run's settings."""
    evaluations, lines = evenly(run.evaluations, 200), [line for line in run.samples if passages(line)]
    shown = evenly(lines, 6)
    folded = [line for line in lines if all(line is not each for each in shown)]
    return {
        "title": f"{run.name} · anyformer",
        "run": run,
        "state": run.state,
        "facts": _facts(run),
        "notes": notes(run),
        "figures": _figures(run),
        "gains": gains(run.path, generates=run.terms.generates),
        "data": report_data(run),
        "evaluations": list(zip(evaluations, tokens_at(run, evaluations), strict=True)),
        "format": {"clock": clock, "count": count, "fixed": fixed, "perplexity": perplexity, "number": number},
        "per_token": run.terms.per_token,
        "samples": [_sample(run, line) for line in shown],
        "further": [_sample(run, line) for line in evenly(folded, 60)],
        "settings": _settings(run, defaults),
        "command": "finetune" if "base" in run.config else "train",
        "path": f"{run.path.resolve().parent.name}/{run.name}",
    }


def notes(run: Run) -> list[str]:
    """Notes to be read before the numbers."""
    at = "" if run.step is None else f" after step {run.step:,}"
    diverged = f"The loss is no longer a number{at}." if run.state == "diverged" else ""
    candidates = {
        run.reason or diverged: True,
        "Nothing has been measured yet.": not run.steps and not run.evaluations,
        f"{unreadable(run)}: a run that is killed may leave half a line.": run.broken_lines,
        "There is no config.yaml that can be read.": not run.config,
    }
    return [note for note, applies in candidates.items() if note and applies]


def unreadable(run: Run) -> str:
    """The number of lines of metrics.jsonl that can't be read, in a clause."""
    lines, are = ("line", "is") if run.broken_lines == 1 else ("lines", "are")
    return f"{run.broken_lines:,} {lines} of metrics.jsonl can't be read, and {are} left out"


def _facts(run: Run) -> list[str]:
    config, header = run.config, run.header
    dtype, device, engine = (header.get(name) or config.get(name) for name in ("dtype", "device", "engine"))
    facts = [
        run.preset or (base_name(base) if isinstance(base := config.get("base"), str) else None),
        parameters(run.parameters, run.trained_parameters, " parameters"),
        config.get("objective"),
        config.get("tokenizer"),
        None if run.tokens_per_step is None else f"{run.tokens_per_step:,.0f} tokens a step",
        " on ".join(str(each) for each in (dtype, device) if each) or None,
        engine,
    ]
    return [str(fact) for fact in facts if fact]


def _figures(run: Run) -> list[dict[str, str]]:
    first = number(run.evaluations[0], "validation_loss") if len(run.evaluations) > 1 else None
    note = run.terms.loss if first is None or run.header.get("head_is_new") is True else f"from {fixed(first)}"
    best = run.best
    if best is not None and run.validation_loss is not None and best["validation_loss"] < run.validation_loss - 5e-3:
        note = f"best {fixed(best['validation_loss'])} at step {best['step']:,}"
    training_loss = None if run.evaluations or not run.steps else number(run.steps[-1], "loss")
    peak, reached = number(run.header, "peak_flops_per_second"), run.flops_per_second
    figures = [
        ("Validation loss", fixed(run.validation_loss), note),
        ("Perplexity", perplexity(run.validation_loss if run.terms.per_token else None), "per token"),
        ("Bits per byte", fixed(run.bits_per_byte), ""),
        ("Training loss", fixed(training_loss), run.terms.loss),
        ("Tokens", count(run.tokens), "" if run.step is None else f"{run.step:,} step{'s' * (run.step != 1)}"),
        ("Time", clock(run.seconds), ""),
        ("Tokens/s", count(run.tokens_per_second), "while training"),
        ("Share of peak", share(reached / peak), f"{flops(reached)} of {si(peak)} measured")
        if peak and reached is not None
        else ("Arithmetic", flops(reached), ""),
    ]
    return [{"label": label, "value": value, "note": note} for label, value, note in figures if value != "–"]


def _sample(run: Run, line: Line) -> dict[str, Any]:
    scores = {each["step"]: number(each, "validation_loss") for each in run.evaluations}
    score = scores.get(line["step"])
    note = "" if score is None else f"loss {fixed(score)}"
    return {"step": f"{line['step']:,}", "note": note, "passages": passages(line)}


def evenly(lines: Sequence[Line], most: int) -> list[Line]:
    """Up to `most` lines, spread over all of them, the first and the last included."""
    if len(lines) <= most:
        return list(lines)
    return [lines[round(index * (len(lines) - 1) / (most - 1))] for index in range(most)]


def _settings(run: Run, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two tables: the run's own settings, and the model's, with what was changed first to be seen."""
    if not run.config:
        return []
    standard = default_settings(run.preset, defaults)
    settings = {name: value for name, value in flatten(run.config).items() if name not in ("runs", "name")}
    groups: list[dict[str, Any]] = []
    for title, prefix in (("Run", ""), (f"Model: {run.preset}" if run.preset else "Model", "model.")):
        rows: list[dict[str, str]] = []
        rest: list[dict[str, str]] = []
        for name, value in settings.items():
            if name.startswith("model.") != bool(prefix):
                continue
            short = name.removeprefix(prefix)
            library = name == "data" and not value and not run.config.get("source")
            text = "Python's standard library" if library else setting(value)
            text = base_name(value) if name == "base" and isinstance(value, str) else text
            row = {"name": short, "value": text, "changed": _changed(name, value, standard)}
            seen = short in _SHAPE if prefix else short not in _SELDOM
            (rows if row["changed"] or (seen and value is not None) else rest).append(row)
        if rows or rest:
            groups.append({"title": title, "rows": rows, "rest": rest})
    return groups


def _changed(name: str, value: Any, standard: Mapping[str, Any]) -> str:
    """The default of a setting that differs from it; one that is chosen to suit the run never does."""
    of_model = name.startswith("model.")
    if name in _OWN or name.startswith("model.special_tokens.") or value == standard.get(name, value):
        return ""
    if standard[name] is None and not of_model:
        return ""
    return f"{'preset' if of_model else 'usually'} {setting(standard[name])}"


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """The values of comparison.html."""
    names = [run.name for run in runs]
    return {
        "title": f"{', '.join(names[:4])} · anyformer",
        "heading": " vs ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        "about": "losses are comparable only where the task, the tokenizer and the validation data are the same"
        if differing(runs)
        else "same tokenizer and data: losses are comparable",
        "notes": [f"{run.name}: {unreadable(run)}" for run in runs if run.broken_lines],
        "state": "",
        "runs": runs,
        "columns": COLUMNS,
        "best": best_scores(runs),
        "data": comparison_data(runs),
        "differences": differences([run.config for run in runs]),
        "setting": setting,
        "samples": [
            {**_sample(run, run.samples[-1]), "name": run.name, "color": color}
            for color, run in enumerate(runs)
            if run.samples
        ],
    }


def best_scores(runs: Sequence[Run]) -> set[tuple[str, str]]:
    """The columns and names of the runs with the lowest scores, where there is something to compare."""
    best: set[tuple[str, str]] = set()
    for column, score in (("loss", "validation_loss"), ("bits/byte", "bits_per_byte")):
        values = [(value, run.name) for run in runs if (value := getattr(run, score)) is not None]
        if len(values) > 1 and not (column == "loss" and differing(runs)):
            best |= {(column, name) for value, name in values if value == min(values)[0]}
    return best


def differing(runs: Sequence[Run]) -> bool:
    """Whether the runs' losses are of different texts, tokens or tasks, and so can't be compared."""
    settings = {"tokenizer", "data", "validation", "field", "source", "target", "objective"}
    settings |= {"task", "columns", "train_on", "label_kind", "loss", "beta"}
    if any(run.terms.per_token for run in runs):
        settings.add("base")  # which has the tokenizer
    return bool(settings & differences([run.config for run in runs]).keys())
