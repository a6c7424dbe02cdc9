"""Evaluate a model on a data set, and say whether it was trained on that."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from anyformer import limits
from anyformer.checkpoint.load import takes_model
from anyformer.config import ProblemType
from anyformer.data.examples import Example
from anyformer.data.examples.columns import Columns, PythonColumns, as_columns
from anyformer.data.examples.labels import LabelKind
from anyformer.data.examples.tables import Data, Table, read_data
from anyformer.data.materialize import HUB
from anyformer.data.rows import holds_kept_rows
from anyformer.errors import UserError
from anyformer.evaluation.result import Evaluation, Options
from anyformer.model import Transformer
from anyformer.runs.directory import CONFIG, MODEL
from anyformer.tasks import TASKS
from anyformer.tasks.loading import load_examples
from anyformer.tokenizer import Tokenizer
from anyformer.training.config_file import absolute

_KINDS: Mapping[ProblemType | None, LabelKind] = {"regression": "regression", "multi_label_classification": "multiple"}


@takes_model
def evaluate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    data: Data | Sequence[Example],
    task: str | None = None,
    *,
    columns: Columns | Mapping[str, str] | None = None,
    header: Sequence[str] = (),
    limit: int | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Evaluate a model on a data set.

    ======================  ============================================================================
    classify                accuracy, f1, mcc; several labels: f1, f1_macro, exact_match;
                            numbers: spearman, pearson, mse
    tag                     entity_f1, precision, recall, accuracy
    embed                   spearman, pearson of scores; recall@1, recall@5, recall@10, mrr of pairs
    seq2seq                 bleu, chrf, rouge1, rouge2, rougeL, rougeLsum, exact_match, perplexity,
                            end_probability, stopped
    chat, completion        rouge1, rouge2, rougeL, rougeLsum, exact_match, perplexity, end_probability, stopped;
                            with choices: accuracy, f1, mcc, perplexity
    text                    perplexity, bits_per_byte
    ======================  ============================================================================

    Args:
        model, tokenizer: See `anyformer.load`; or in the place of both the directory to load them from.
        data: Files, folders and globs, see docs/finetuning.md; or rows, as dicts, a data frame of pandas or polars, or
            a `datasets.Dataset`; or examples.
        task: One of those above; None: as the columns of the data say.
        columns: The names of columns that aren't the usual ones, such as ``{"text": "review", "label": "stars"}``.
        header: The names of the columns of .csv and .tsv files that have no header.
        limit: Rows to evaluate, the first ones; None: all.
        options: How answers are generated or chosen.

    Returns:
        The metrics by name, such as ``{"accuracy": 0.87, ...}``, whose attributes are their intervals, the scores of
        each class, the confusion matrix and the rows.

    Raises:
        UserError: data that can't be read, a task that the model has no head for, labels that it doesn't know.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is a number of rows, at least 1, not {limit}.")
    examples, detected, warning = _read(model, data, task, as_columns(columns or {}, PythonColumns), header)
    evaluation = evaluate_examples(model, tokenizer, examples[:limit], detected, options or Options())
    return evaluation if warning is None else replace(evaluation, notes=(warning, *evaluation.notes))


def evaluate_examples(
    model: Transformer, tokenizer: Tokenizer | None, examples: Sequence[Example], task: str, options: Options
) -> Evaluation:
    """Evaluate a model on examples of a task."""
    if not examples:
        raise UserError("There is no example to evaluate the model on.")
    return replace(TASKS[task].evaluate(model, tokenizer, examples, options), task=task)


def _read(
    model: Transformer,
    data: Data | Sequence[Example],
    task: str | None,
    columns: Columns | None,
    header: Sequence[str],
) -> tuple[Sequence[Example], str, str | None]:
    """The examples, their task, and a sentence if the model was trained on them."""
    if isinstance(data, Sequence) and data and isinstance(data[0], Example):
        examples = cast("Sequence[Example]", data)
        return examples, task or next(name for name, each in TASKS.items() if each.example is type(data[0])), None
    head = model.config.head
    kind = _KINDS.get(head.problem) if head.kind == "classification" else None
    rows, labels = read_data(data), head.label_names or None
    if rows == ():
        raise UserError("No data was given: there are no rows to evaluate the model on.")
    loaded = load_examples(rows, task=task, columns=columns, header=header, labels=labels, kind=kind, training=False)
    return loaded.examples, loaded.task, trained_on(model, rows if isinstance(rows, Table) else loaded.files)


def trained_on(model: Transformer, data: Iterable[str | Path] | Table) -> str | None:
    """A sentence on the data if a model was trained on it, as its run says; else None.

    The names in a run are compared with the data and neither read nor looked for: a run may come from anyone.

    Args:
        data: Files and data sets of the hub; or rows.
    """
    for path in model.origin.paths:
        settings = _settings(path)
        trained = [absolute(each) for each in _texts(settings.get("data"))]
        if isinstance(data, Table):
            rows = [path for entry in trained if holds_kept_rows(path := Path(entry))]
            names = ["these rows"] * any(entry.name == data.file[0] for entry in rows)
        else:
            found = [str(each) for each in data if any(_covers(entry, absolute(each)) for entry in trained)]
            names = [path if path.startswith(HUB) else Path(path).name for path in found]
        if names:
            rest = "" if _texts(settings.get("validation")) else ", but for the tenth that was held out"
            return (
                f"This model was trained on {names[0]}{rest}: the figures say how much it remembers, and not how good "
                "it is at what it has not seen."
            )
    return None


def _settings(path: Path) -> dict[str, Any]:
    """The config of the run that a model belongs to; nothing where there is none that can be read."""
    for run in (path, path.parent) if path.name == MODEL else (path,):
        try:
            if (run / CONFIG).is_file():
                values: object = limits.read_yaml(limits.path_inside(run, CONFIG))
                return cast("dict[str, Any]", values) if isinstance(values, dict) else {}
        except (UserError, OSError, ValueError):
            pass  # whoever goes on with the run is told
    return {}


def _texts(values: object) -> list[str]:
    listed = cast("list[object]", values) if isinstance(values, list) else [values]
    return [each for each in listed if isinstance(each, str)]


def _covers(entry: str, file: str) -> bool:
    """Whether a file is what a run names: itself, one in a folder, or one that a pattern matches."""
    return file == entry or Path(entry) in Path(file).parents or ("*" in entry and fnmatchcase(file, entry))
