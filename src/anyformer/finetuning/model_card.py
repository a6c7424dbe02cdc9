"""README.md beside a fine-tuned model: a model card that the Hugging Face hub and its libraries read."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import jinja2
from markupsafe import Markup

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
    """Write the card of a model, or of an adapter, with the results of `report.result`.

    Raises:
        UserError: the disk refuses.
    """
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined, finalize=_finalize
    )
    cast("dict[str, Any]", environment.filters).update(fence=_code, number=number, general=general)
    template = environment.from_string((files(__package__ or "") / "card.jinja").read_text(encoding="utf-8"))
    library = _library(directory, config)
    base = printable(base_name(config.base))  # a folder's path is nobody else's business
    metrics = {metric: figure for metric, figure in result["metrics"].items() if figure["after"] is not None}
    compared = any(figure["before"] is not None for figure in metrics.values())
    text = template.render(
        front=Markup(_front_matter(library, name, config, metrics)),
        name=name,
        base=base,
        quoted_base=Markup(repr(base)),
        adapter=config.adapter is not None,
        library=library,
        task=TASKS[config.task],
        labels=len(config.labels),
        trained_on=checks["training"].examples if "training" in checks else None,
        result=result,
        compared=compared,
        metrics=_metrics(metrics, compared=compared) if metrics else None,
        classes=_classes(result["classes"]) if result["classes"] else None,
        losses=result.get("validation_loss"),
        answers=[_answer(answer) for answer in result["answers"][:_EXAMPLES]],
        settings=_settings(config, result.get("run", {})),
        version=__version__,
    )
    atomic.write(directory / FILE, text)
    return directory / FILE


def _front_matter(library: str, name: str, config: CompleteFinetuneConfig, metrics: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # is slow to import

    pipeline, base = TASKS[config.task].pipeline, base_name(config.base)
    datasets = [each.removeprefix("hf:").partition(":")[0] for each in config.data if each.startswith("hf:")]
    source = datasets[0] if datasets else _file_name((*config.validation, *config.data))
    measured = [
        EvalResult(
            task_type=pipeline,
            dataset_type=source if datasets else "held-out",
            dataset_name=printable(f"{source}, examples held out" if not config.validation else source),
            metric_type=metric,
            metric_value=round(figure["after"], 6),
            metric_name=metric.replace("_", " "),
        )
        for metric, figure in metrics.items()
    ]
    tags = ["anyformer", *(["lora"] if config.adapter is not None else [])]
    if library == "sentence-transformers":
        tags += ["sentence-transformers", "feature-extraction"]
    relation = "adapter" if config.adapter is not None else "finetune"
    extra: dict[str, Any] = {"base_model": base, "base_model_relation": relation} if is_hub_id(base) else {}
    data = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        tags=tags,
        datasets=datasets or None,
        metrics=sorted(metrics) or None,
        model_name=printable(name),
        eval_results=measured or None,
        **extra,
    )
    return data.to_yaml().strip()


def _library(directory: Path, config: CompleteFinetuneConfig) -> str:
    """The library that opens the directory; anyformer where no class of Hugging Face's can express the model."""
    if config.adapter is not None:
        return "peft"
    try:
        if limits.read_object(directory / "config.json").get("model_type") == OWN_FAMILY.model_type:
            return "anyformer"
    except UserError:
        pass
    return "sentence-transformers" if TASKS[config.task].makes_vectors else "transformers"


def _settings(config: CompleteFinetuneConfig, facts: Mapping[str, str]) -> Markup:
    values = {name: getattr(config, name) for name in _SETTINGS if config.task in (tasks_of(name) or [config.task])}
    rows = [
        ("data", ", ".join(_file_name([each]) for each in config.data) or "Python's standard library"),
        *((name, value) for name, value in facts.items() if value),
        *(
            (name.replace("_", " "), f"{value:g}" if isinstance(value, float) else str(value))
            for name, value in values.items()
            if value not in (None, False, ())
        ),
    ]
    return _table(("setting", "value"), [(escape(name), escape(value)) for name, value in rows])


def _metrics(metrics: Mapping[str, Any], *, compared: bool) -> Markup:
    rows = [
        (
            escape(name.replace("_", " ")),
            number(figure["before"]),
            f"{number(figure['after'])}{interval(figure['interval'])}",
            points(figure) or "–",
        )
        for name, figure in metrics.items()
    ]
    columns = slice(None) if compared else slice(0, None, 2)
    return _table(("metric", "before", "after", "difference")[columns], [row[columns] for row in rows])


def _classes(classes: Sequence[Mapping[str, Any]]) -> Markup:
    forms = {"training": ",", "held_out": ",", "precision": ".3f", "recall": ".3f", "f1": ".3f"}
    rows = [
        (
            escape(shorten(each["label"], 80)),
            *("–" if each[name] is None else format(each[name], form) for name, form in forms.items()),
        )
        for each in classes[:_LABELS]
    ]
    return _table(("label", "trained on", "held out", "precision", "recall", "F1"), rows)


def _answer(answer: Mapping[str, Any]) -> Markup:
    titles = {"asked": "question", "right": "reference", "before": "before", "after": "after"}
    texts = {title: answer[name] for title, name in titles.items() if answer[name] is not None}
    return _fence("\n\n".join(f"{title}:\n{shorten(printable(text), _CHARACTERS)}" for title, text in texts.items()))


def _file_name(paths: Sequence[str]) -> str:
    """The name of the first file, or of the data set on the hub."""
    first = paths[0] if paths else ""
    return printable(first if first.startswith("hf:") else Path(first).name or "data")


def escape(text: str) -> str:
    """A text in one line of Markdown that says just what it is."""
    line = " ".join(printable(text).split())
    return _ESCAPED.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), line)


def _finalize(value: Any) -> Markup | str:
    """Escape text in the template unless it is `Markup`, as tables and blocks of code are."""
    return value if isinstance(value, Markup) else escape(str(value))


def _code(text: str, language: str) -> Markup:
    return _fence(text.strip(), language)


def _fence(text: str, language: str = "") -> Markup:
    """A block of code, whose fence is longer than any in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    lines = [heads, ["---"] * len(heads), *rows]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))
