"""The plan of a comparison, resolved once: plan.json in its directory.

::

    DIRECTORY/plan.json   the request, and each contender's config, learning rate and seconds a step
              data/       see `anyformer.compare.corpus`
              jobs/       run directories, see `anyformer.compare.jobs`
              compare.json
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from anyformer import atomic, limits
from anyformer.analysis import part_costs
from anyformer.checkpoint.adapter_directory import find_adapter
from anyformer.compare import corpus, matching, verdicts
from anyformer.compare.budget import TRIAL, flops_per_token
from anyformer.compare.corpus import SharedText
from anyformer.compare.matching import Candidate
from anyformer.compare.request import Request
from anyformer.compare.result import Ablation
from anyformer.compare.training import seconds_per_step, training_batches
from anyformer.config import ModelConfig
from anyformer.data.disk_cache import identity, key
from anyformer.errors import UserError, quote
from anyformer.finetuning.config import read_fine_tuning
from anyformer.runs.directory import CONFIG, model_directory
from anyformer.schema import make
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import default_learning_rate
from anyformer.training.config_file import read_yaml
from anyformer.training.prepare import fit_model

PLAN, DATA, JOBS, RESULT = "plan.json", "data", "jobs", "compare.json"
_SIZES = ("d_model", "encoder_layers", "decoder_layers", "feed_forward", "attention.heads", "attention.kv_heads")
"""Fields that are sizes themselves: where they are varied, nothing is made equal."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The part of plan.json that the request doesn't determine."""

    matched: dict[str, float]
    contenders: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison, ready to be worked on.

    Attributes:
        out: its directory.
        matched: the size that was made equal, by contender.
    """

    out: Path
    request: Request
    text: SharedText
    contenders: tuple[Candidate, ...]
    matched: dict[str, float]
    ablation: Ablation | None


def make_plan(request: Request, out: Path) -> Plan:
    """Settle what is compared, or read what was settled before by the same request.

    Of several processes one does it, and the others wait.

    Raises:
        UserError: the directory holds another comparison, or a symbolic link leads out of it; anything that is wrong
            with contenders, data or budget.
    """
    files = corpus.read_files(request.data or _data_of_runs(request), request.field)
    asked = {**request.to_dict(), "files": identity(files)}
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic.open_directory(out)
        with FileLock(out / ".lock"):
            if not (out / PLAN).exists():
                try:
                    _write(request, asked, files, out)
                except UserError:
                    if made:
                        (out / ".lock").unlink(missing_ok=True)
                    with suppress(OSError):  # a folder with something in it stays
                        for folder in made:
                            folder.rmdir()
                    raise
            return _read(request, asked, files, out)
    except OSError as error:
        raise UserError(f"The comparison can't be written to {out}: {error.strerror or error}.") from error


@lru_cache(maxsize=1)
def stored_plan(out: Path) -> Plan:
    """The plan of a comparison that was begun in a directory. Raises UserError as `make_plan`."""
    asked: dict[str, Any] = limits.read_object(out / PLAN).get("asked") or {}
    request = make(Request, {name: value for name, value in asked.items() if name != "files"}, f"{out / PLAN}: ")
    return make_plan(request, out)


def _write(request: Request, asked: dict[str, Any], files: Sequence[Path], out: Path) -> None:
    if any(not each.name.startswith(".") for each in out.iterdir()):
        raise UserError(f"{out} holds something else: choose another folder with --out.")
    made = verdicts.grid(request.contenders[0], request.vary) if request.vary else None
    names = verdicts.specs(made) if made is not None else {}
    found = matching.candidates([*names.values()] if made is not None else request.contenders, request.match)
    if made is not None:
        found = [replace(entry, name=name) for entry, name in zip(found, names, strict=True)]
    tokenizer = _tokenizer_of_runs(found)
    with atomic.temporary_folder(out / DATA) as folder:
        text = corpus.prepare(folder / DATA, files, request.field, request.context, request.tokenizer, tokenizer)
        entries = [_fitted(entry, text) for entry in found]
        sizes = made is not None and any(name.startswith(_SIZES) for name in made.factors)
        size, what = _size(request, text)
        if request.match != "none" and not sizes:
            entries = matching.matched(entries, size, what)
        entries = _check_blocks(entries, request.match)
        planned = [_with_training(entry) for entry in entries]
        if request.budget.kind == "minutes":
            trained = [each for each in planned if each.directory is None]
            times = seconds_per_step([each.config for each in trained], text, request)
            taken = dict(zip([each.name for each in trained], times, strict=True))
            planned = [replace(each, seconds=taken.get(each.name)) for each in planned]
        _check_budget(request, text, planned)
        content = {
            "version": 1,
            "asked": asked,
            "matched": {each.name: size(each.config) for each in planned},
            "contenders": [_to_dict(each) for each in planned],
        }
        atomic.move(folder / DATA, out / DATA)
    atomic.write(out / PLAN, json.dumps(content, indent=1) + "\n")


def _check_budget(request: Request, text: SharedText, contenders: Sequence[Candidate]) -> None:
    """Raises UserError where the budget of a run, or of trying a learning rate, is too small for one step."""
    budget = request.budget.share(TRIAL if request.tune else 1.0)
    for each in contenders:
        if each.directory is None:
            batch = training_batches(each.config, text, request.batch_size, 0).batch(0)
            budget.require_step(each.config, batch, request.batch_size * text.window, each.seconds)


def _read(request: Request, asked: dict[str, Any], files: Sequence[Path], out: Path) -> Plan:
    stored = limits.read_object(out / PLAN)
    if stored.get("version") != 1 or stored.get("asked") != json.loads(json.dumps(asked)):
        raise UserError(
            f"{out} holds another comparison, or the data has changed since: choose another folder with --out."
        )
    text = corpus.prepare(out / DATA, files, request.field, request.context, request.tokenizer, None)
    made = verdicts.grid(request.contenders[0], request.vary) if request.vary else None
    specs = request.contenders if made is None else verdicts.specs(made).values()
    try:
        settled = make(Settled, {name: stored.get(name) for name in ("matched", "contenders")})
        _check(settled.contenders, [*specs], request, text)
    except UserError as error:
        raise UserError(f"{out / PLAN} is damaged, so choose another folder with --out: {error}") from error
    return Plan(
        out=out, request=request, text=text, contenders=settled.contenders, matched=settled.matched, ablation=made
    )


def _check(contenders: Sequence[Candidate], specs: Sequence[str], request: Request, text: SharedText) -> None:
    """Raise UserError for contenders that were not settled for these specifications and this text."""
    if [each.spec for each in contenders] != specs or len({each.name for each in contenders}) < len(specs):
        raise UserError("the contenders are others.")
    for each in contenders:
        if each.directory not in (None, Path(each.spec)):
            raise UserError(f"{each.spec} was elsewhere.")
        if request.budget.kind == "minutes" and each.directory is None and each.seconds is None:
            raise UserError(f"{each.spec} was not timed.")
        config, longest = each.config, each.config.context_length
        is_short = longest is not None and longest < text.context
        if is_short or config.vocab_size < text.tokenizer.vocab_size or config.head.kind != "language_model":
            raise UserError(f"{each.spec} can't read the text.")


def seeds_of(plan: Plan) -> int:
    """How many there are: one, where a model that is there already takes part."""
    return 1 if any(each.directory is not None for each in plan.contenders) else plan.request.seeds


def _size(request: Request, text: SharedText) -> tuple[matching.Size, str]:
    if request.match == "flops":
        return partial(flops_per_token, window=text.window), "FLOPs a token"
    return matching.parameters_outside_embeddings, "parameters outside embeddings"


def _fitted(entry: Candidate, text: SharedText) -> Candidate:
    """With the vocabulary and the special tokens of the shared tokenizer, and the context."""
    if entry.directory is not None:
        longest = entry.config.context_length
        if longest is not None and longest < text.context:
            raise UserError(f"{entry.spec} reads {longest} tokens at a time: give --context {longest} or less.")
        return entry
    config = entry.config.replace(max_length=text.context)
    return replace(entry, config=fit_model(config, text.tokenizer, None))


def _with_training(entry: Candidate) -> Candidate:
    """With the learning rate of a model that is trained, and the objective of one that was."""
    objective = None if entry.directory is None else _objective(entry.directory)
    return replace(entry, learning_rate=default_learning_rate(entry.config), objective=objective)


def _objective(directory: Path) -> str | None:
    """Training objective of a run; None where its directory does not say."""
    config = directory / CONFIG
    trained = config.is_file() and read_fine_tuning(config) is None
    return getattr(read_yaml(config), "objective", None) if trained else None


def _check_blocks(found: Sequence[Candidate], match: str) -> list[Candidate]:
    """Say where depth or width differ, which decide most."""
    first = found[0]
    made: list[Candidate] = []
    for entry in found:
        sizes = [(each.config.d_model, matching.depth(each.config, match)) for each in (entry, first)]
        note = "" if sizes[0] == sizes[1] else "d_model {} and {} blocks, where {} has {} and {}"
        text = note.format(*sizes[0], first.name, *sizes[1])
        made.append(replace(entry, notes=(*entry.notes, text)) if note else entry)
    return made


def _tokenizer_of_runs(found: Sequence[Candidate]) -> Tokenizer | None:
    """The tokenizer that finished models have in common; None without such models.

    Raises:
        UserError: they have different ones, or one has none, or predicts no text.
    """
    chosen: tuple[str, Tokenizer] | None = None
    for entry in found:
        if entry.directory is None:
            continue
        if entry.config.head.kind != "language_model":
            raise UserError(
                f"{entry.spec} predicts no text, by which models are compared (its head is "
                f"{quote(entry.config.head.kind)}): `anyformer evaluate` measures it on its own task."
            )
        directory = entry.directory
        tokenizer = Tokenizer.find(find_adapter(directory) or model_directory(directory))
        if tokenizer is None:
            raise UserError(f"{entry.spec} has no tokenizer, so it can't be compared on a text.")
        if chosen is not None and _pipeline(tokenizer) != _pipeline(chosen[1]):
            raise UserError(
                f"{chosen[0]} and {entry.spec} have different tokenizers, so nothing they predict is the same: compare "
                "runs that share one, or let them be trained anew, from their config.yaml."
            )
        chosen = chosen or (entry.spec, tokenizer)
    return None if chosen is None else chosen[1]


def _pipeline(tokenizer: Tokenizer) -> object:
    """The part of a tokenizer that decides on the ids of a text, without special tokens around it."""
    pipeline = cast("dict[str, Any]", json.loads(tokenizer.backend.to_str()))
    return {name: part for name, part in pipeline.items() if name != "post_processor"}


def _data_of_runs(request: Request) -> tuple[str, ...]:
    """The data of the first finished run among the contenders, of which a part was held out; examples are no text."""
    for spec in request.contenders:
        config = Path(spec) / CONFIG
        if Path(spec).is_dir() and config.is_file() and read_fine_tuning(config) is None:
            return read_yaml(config).data
    return ()


def default_folder(request: Request) -> Path:
    """Where a comparison is kept unless it is said: the same folder for the same request."""
    names = [Path(spec.partition(":")[0]).name for spec in request.contenders]
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in "-".join(names))
    return Path("comparisons") / f"{slug[:60].strip('-.')}-{key(request.to_dict())[:6]}"


def _to_dict(each: Candidate) -> dict[str, Any]:
    directory = None if each.directory is None else str(each.directory)
    return {**vars(each), "config": each.config.to_dict(), "directory": directory, "notes": list(each.notes)}


def parameters(config: ModelConfig) -> int:
    """All weights of a model."""
    return sum(part.parameters for part in part_costs(config, config.max_length))
