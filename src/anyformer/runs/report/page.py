"""Contents of the page on one run, beside its curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from anyformer.pages.formatting import (
    clock,
    count,
    fixed,
    flops,
    parameters,
    perplexity,
    setting,
    share,
    si,
)
from anyformer.runs.directory import base_name
from anyformer.runs.listing import Line, Run, default_settings, flatten, number, passages
from anyformer.runs.report.charts import report_data, tokens_at
from anyformer.runs.report.gains import gains

_SHAPE = (
    *("vocab_size", "d_model", "encoder_layers", "decoder_layers", "max_length", "attention.heads"),
    *("attention.kv_heads", "feed_forward.width", "feed_forward.activation", "position.kind", "norm.kind"),
    *("norm.placement", "embedding.tied", "head.kind", "dropout"),
)
"""Settings of the model that are shown whatever their values."""

_SELDOM = (
    *("field", "max_record_bytes", "source", "target", "document_masking", "whole_word_masking", "label_smoothing"),
    *("workers", "cache", "batch_tokens", "grad_accumulation", "beta2", "average", "gradient_checkpointing"),
    *(
        "compile",
        "engine",
        "processes",
        "zero_stage",
        "save_every",
        "keep",
        "keep_optimizer",
        "log_every",
        "track",
        "validation",
    ),
)
"""Settings of a run that are folded away where they are as usual."""

_OWN = (
    *("preset", "data", "tokenizer", "steps", "minutes", "evaluate_every", "track", "model.model_type"),
    "model.embedding.padding",
)
"""Settings that every run has its own of: a difference would say nothing. So have the tokenizer's own tokens."""


def page(run: Run, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of page.html; `defaults` are those of a run's settings."""
    samples, further = _samples(run)
    return {
        "title": f"{run.name} · anyformer",
        "run": run,
        "state": run.state,
        "facts": _facts(run),
        "notes": notes(run),
        "figures": _figures(run),
        "gains": gains(run.path, generates=run.terms.generates),
        "data": report_data(run),
        "evaluations": _evaluations(run),
        "per_token": run.terms.per_token,
        "samples": samples,
        "further": further,
        "settings": _settings(run, defaults),
        "commands": _commands(run),
    }


def notes(run: Run) -> list[str]:
    """Notes to be read before the numbers."""
    said: list[str] = []
    if run.state == "diverged":
        at = "" if run.step is None else f" after step {run.step:,}"
        said.append(f"The loss is no longer a number{at}." if not run.reason else run.reason)
    elif run.reason:
        said.append(run.reason)
    if not run.steps and not run.evaluations:
        said.append("Nothing has been measured yet.")
    if run.broken_lines:
        said.append(f"{unreadable(run)}: a run that is killed may leave half a line.")
    if not run.config:
        said.append("There is no config.yaml that can be read.")
    return said


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
    figures: list[dict[str, str]] = []

    def add(label: str, value: str, note: str = "") -> None:
        if value != "–":
            figures.append({"label": label, "value": value, "note": note})

    first = number(run.evaluations[0], "validation_loss") if len(run.evaluations) > 1 else None
    came = "" if first is None or run.header.get("head_is_new") is True else f"from {fixed(first)}"
    best = run.best
    if best is not None and run.validation_loss is not None and best["validation_loss"] < run.validation_loss - 5e-3:
        came = f"best {fixed(best['validation_loss'])} at step {best['step']:,}"
    unit = run.terms.loss
    add("Validation loss", fixed(run.validation_loss), came or unit)
    if run.terms.per_token:
        add("Perplexity", perplexity(run.validation_loss), "per token")
    add("Bits per byte", fixed(run.bits_per_byte))
    if not run.evaluations and run.steps:
        add("Training loss", fixed(number(run.steps[-1], "loss")), unit)
    add("Tokens", count(run.tokens), "" if run.step is None else f"{run.step:,} step{'s' * (run.step != 1)}")
    add("Time", clock(run.seconds))
    add("Tokens/s", count(run.tokens_per_second), "while training")
    peak, reached = number(run.header, "peak_flops_per_second"), run.flops_per_second
    if peak and reached is not None:
        add("Share of peak", share(reached / peak), f"{flops(reached)} of {si(peak)} measured")
    else:
        add("Arithmetic", flops(reached))
    return figures


def _evaluations(run: Run) -> list[list[str]]:
    lines, per_token = evenly(run.evaluations, 200), run.terms.per_token
    return [
        [
            f"{line['step']:,}",
            clock(number(line, "elapsed")),
            count(tokens),
            fixed(number(line, "validation_loss")),
            *((perplexity(number(line, "validation_loss")), fixed(number(line, "bits_per_byte"))) if per_token else ()),
        ]
        for line, tokens in zip(lines, tokens_at(run, lines), strict=True)
    ]


def _samples(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples that are shown, over the whole run, and those that are folded away."""
    lines = [line for line in run.samples if passages(line)]
    shown = evenly(lines, 6)
    folded = [line for line in lines if all(line is not each for each in shown)]
    scores = {line["step"]: number(line, "validation_loss") for line in run.evaluations}

    def told(line: Line) -> dict[str, Any]:
        score = scores.get(line["step"])
        note = "" if score is None else f"loss {fixed(score)}"
        return {"step": f"{line['step']:,}", "note": note, "passages": passages(line)}

    return [told(line) for line in shown], [told(line) for line in evenly(folded, 60)]


def evenly(lines: Sequence[Line], most: int) -> list[Line]:
    """At most so many, spread over all of them, the first and the last included."""
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


def _commands(run: Run) -> list[dict[str, str]]:
    path = f"{run.path.resolve().parent.name}/{run.name}"
    command = "anyformer finetune" if "base" in run.config else "anyformer train"
    commands = [{"what": "Repeat", "line": f"{command} --config {path}/config.yaml"}] if run.config else []
    if run.state in ("stopped", "diverged"):
        commands.insert(0, {"what": "Go on", "line": f"{command} --resume {path}"})
    return commands
