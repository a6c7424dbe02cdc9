"""README.md beside a fine-tuned model: a model card that the Hugging Face hub and its libraries read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import __version__, atomic, limits
from anyformer.errors import UserError
from anyformer.families.own import FAMILY as OWN_FAMILY
from anyformer.finetuning.check import Check
from anyformer.finetuning.config import CompleteFinetuneConfig, tasks_of
from anyformer.pages.formatting import general, interval, number, points
from anyformer.runs.directory import base_name, is_hub_id
from anyformer.tasks import TASKS
from anyformer.terminal import printable, shorten

FILE = "README.md"

_SETTINGS = (
    *("steps", "minutes", "batch_size", "context", "packing", "learning_rate", "schedule", "warmup", "weight_decay"),
    *("optimizer", "label_smoothing", "loss", "beta", "train_on", "system", "lora", "lora_alpha", "lora_dropout"),
    *("dora", "rslora", "quantize", "dtype", "seed"),
)
_EXAMPLES, _LABELS, _CHARACTERS = 5, 100, 600
_ESCAPED = re.compile(r"[\\`*_{}\[\]|~$<>&]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def write_card(
    directory: Path,
    name: str,
    config: CompleteFinetuneConfig,
    result: Mapping[str, Any],
    checks: Mapping[str, Check],
) -> Path:
    """Write the card of a model.

    Args:
        directory: Of the model, or of its adapter.
        name: What the model is called.
        config: Of the run.
        result: What `report.result` knows about it.
        checks: Counts of the examples, by name.

    Raises:
        UserError: the disk refuses.
    """
    front, body = _front_matter(directory, name, config, result), _paragraphs(directory, name, config, result, checks)
    atomic.write(directory / FILE, "\n\n".join((f"---\n{front}\n---", *body)) + "\n")
    return directory / FILE


def _front_matter(directory: Path, name: str, config: CompleteFinetuneConfig, result: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # is slow to import

    pipeline, library = TASKS[config.task].pipeline, _library(directory, config)
    base = _hub_base(config)
    datasets = [each.removeprefix("hf:") for each in config.data if each.startswith("hf:")]
    source = datasets[0].partition(":")[0] if datasets else _file_name((*config.validation, *config.data))
    measured = [
        EvalResult(
            task_type=pipeline,
            dataset_type=source if datasets else "held-out",
            dataset_name=printable(f"{source}, examples held out" if not config.validation else source),
            metric_type=metric,
            metric_value=round(figure["after"], 6),
            metric_name=metric.replace("_", " "),
        )
        for metric, figure in result["metrics"].items()
        if figure["after"] is not None
    ]
    tags = ["anyformer", *(["lora"] if config.adapter is not None else [])]
    if library == "sentence-transformers":
        tags += ["sentence-transformers", "feature-extraction"]
    extra: dict[str, Any] = {"base_model": base} if base is not None else {}
    if base is not None:
        extra["base_model_relation"] = "adapter" if config.adapter is not None else "finetune"
    data = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        tags=tags,
        datasets=[each.partition(":")[0] for each in datasets] or None,
        metrics=sorted({each.metric_type for each in measured}) or None,
        model_name=printable(name),
        eval_results=measured or None,
        **extra,
    )
    return data.to_yaml().strip()


def _library(directory: Path, config: CompleteFinetuneConfig) -> str:
    if config.adapter is not None:
        return "peft"
    if _is_own(directory):
        return "anyformer"
    return "sentence-transformers" if TASKS[config.task].makes_vectors else "transformers"


def _is_own(directory: Path) -> bool:
    """Whether no class of Hugging Face's can express the model."""
    try:
        return limits.read_object(directory / "config.json").get("model_type") == OWN_FAMILY.model_type
    except UserError:
        return False


def _hub_base(config: CompleteFinetuneConfig) -> str | None:
    """The base's name on the hub; None: it is a file or a folder of this machine."""
    name = base_name(config.base)
    return name if is_hub_id(name) else None


def _paragraphs(
    directory: Path, name: str, config: CompleteFinetuneConfig, result: Mapping[str, Any], checks: Mapping[str, Check]
) -> Iterator[str]:
    base = _base(config)
    yield f"# {escape(name)}"
    what = "An adapter of" if config.adapter is not None else "A fine-tuned version of"
    count = f" It was trained on {checks['training'].examples:,} examples." if "training" in checks else ""
    yield f"{what} {escape(base)}. It has learned {TASKS[config.task].learns}.{count}"
    yield "## Use"
    yield from _usage(directory, config)
    yield from _measured(result)
    yield from _answers(result)
    yield "## Training"
    values = {key: getattr(config, key) for key in _SETTINGS if config.task in (tasks_of(key) or [config.task])}
    rows = [("data", ", ".join(_file_name([each]) for each in config.data) or "Python's standard library")]
    for key, value in values.items():
        if value not in (None, False, ()):
            rows.append((key.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value)))
    rows[1:1] = [(name, value) for name, value in result.get("run", {}).items() if value]
    yield _table(("setting", "value"), [(escape(key), escape(value)) for key, value in rows])
    yield f"Trained with anyformer {__version__}."


def _usage(directory: Path, config: CompleteFinetuneConfig) -> Iterator[str]:
    base = repr(_base(config))
    ours = f"af.load({base}, adapter=PATH)" if config.adapter is not None else "af.load(PATH)"
    yield _fence(f'import anyformer as af\n\nPATH = "path/to/this/directory"\nmodel, tokenizer = {ours}', "python")
    if config.adapter is None and _is_own(directory):
        yield "No class of `transformers` can express this model, so only anyformer opens it."
        return
    task = TASKS[config.task]
    kind = task.auto_class
    if config.adapter is not None:
        count = f", num_labels={max(1, len(config.labels))}" if task.labels_texts else ""
        yield _fence(
            f"from peft import PeftModel\nfrom transformers import {kind}\n\n"
            f"base = {kind}.from_pretrained({base}{count})\nmodel = PeftModel.from_pretrained(base, PATH)",
            "python",
        )
    elif task.makes_vectors:
        yield _fence(
            "from sentence_transformers import SentenceTransformer\n\n"
            'vectors = SentenceTransformer(PATH).encode(["a text", "another one"])',
            "python",
        )
    else:
        yield _fence(
            f"from transformers import {kind}, AutoTokenizer\n\n"
            f"model = {kind}.from_pretrained(PATH)\ntokenizer = AutoTokenizer.from_pretrained(PATH)",
            "python",
        )


def _measured(result: Mapping[str, Any]) -> Iterator[str]:
    metrics = {name: each for name, each in result["metrics"].items() if each["after"] is not None}
    if metrics or result["general"] is not None or result.get("validation_loss") is not None:
        yield "## Evaluation"
    if metrics:
        compared = any(each["before"] is not None for each in metrics.values())
        paired = "; that of the difference is a paired bootstrap's" if compared else ""
        yield f"On {result['measured_on']} that it was not trained on, with 95% intervals{paired}."
        rows = [
            (
                escape(name.replace("_", " ")),
                "–" if each["before"] is None else number(each["before"]),
                f"{number(each['after'])}{interval(each['interval'])}",
                points(each) or "–",
            )
            for name, each in metrics.items()
        ]
        heads = ("metric", "before", "after", "difference")
        shown = range(len(heads)) if compared else (0, 2)
        heads, *rows = ([row[index] for index in shown] for row in (heads, *rows))
        yield _table(heads, rows)
    if result["classes"]:
        rows = [
            (
                escape(shorten(each["label"], 80)),
                *("–" if each[key] is None else f"{each[key]:,}" for key in ("training", "held_out")),
                *("–" if each[key] is None else f"{each[key]:.3f}" for key in ("precision", "recall", "f1")),
            )
            for each in result["classes"][:_LABELS]
        ]
        yield _table(("label", "trained on", "held out", "precision", "recall", "F1"), rows)
    if result["general"] is not None:
        yield f"General text, which has nothing to do with the task: perplexity {general(result['general'])}."
    if (losses := result.get("validation_loss")) is not None:
        first, last = losses
        before = "" if first is None else f"{number(first)} before, "
        yield f"Validation loss: {before}{number(last)} after."
    for note in result["notes"]:
        yield escape(note)


def _answers(result: Mapping[str, Any]) -> Iterator[str]:
    shown = result["answers"][:_EXAMPLES]
    if not shown:
        return
    yield "## Examples"
    for each in shown:
        parts = [("asked", each["question"]), ("right", each["reference"]), ("before", each["before"])]
        parts.append(("after", each["after"]))
        texts = [f"{title}:\n{_cut(text)}" for title, text in parts if text is not None]
        yield _fence("\n\n".join(texts))


def _base(config: CompleteFinetuneConfig) -> str:
    """The base as others may know it: a folder's path is nobody else's business."""
    return printable(base_name(config.base))


def _file_name(paths: Sequence[str]) -> str:
    """The name of the first file, or of the data set on the hub."""
    first = paths[0] if paths else ""
    return printable(first if first.startswith("hf:") else Path(first).name or "data")


def escape(text: str) -> str:
    """A text in one line of Markdown that says just what it is."""
    line = " ".join(printable(text).split())
    return _ESCAPED.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line)


def _cut(text: str) -> str:
    return shorten(printable(text), _CHARACTERS)


def _fence(text: str, language: str = "") -> str:
    """A block of code, whose fence is longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
