"""The plan of a comparison, made once: plan.json in its directory.

::

    DIRECTORY/plan.json   the request, and the config, learning rate and costs of each model
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
from anyformer.analysis import cache_bytes_per_token, part_costs
from anyformer.checkpoint.adapter_directory import find_adapter
from anyformer.compare import corpus, matching, verdicts
from anyformer.compare.corpus import SharedText
from anyformer.compare.request import Request
from anyformer.compare.result import VERSION, Ablation, ComparedModel, Comparison
from anyformer.compare.training import flops_per_token, objective_of, require_step, seconds_per_step
from anyformer.data.disk_cache import identity, key
from anyformer.errors import UserError, quote
from anyformer.finetuning.config import read_fine_tuning
from anyformer.runs.directory import CONFIG, model_directory
from anyformer.schema import make, to_plain, typed
from anyformer.tokenizer import Tokenizer
from anyformer.training.config import TrainConfig, default_learning_rate
from anyformer.training.config_file import read_yaml
from anyformer.training.prepare import fit_model

PLAN, DATA, JOBS, RESULT = "plan.json", "data", "jobs", "compare.json"
RATES = (0.5, 1.0, 2.0)
"""Learning rates that are tried, as multiples of the default."""
TRIAL = 0.1
"""Share of one seed's budget for each learning rate that is tried."""
_SIZES = ("d_model", "encoder_layers", "decoder_layers", "feed_forward", "attention.heads", "attention.kv_heads")
"""Fields that are sizes themselves: where they are varied, nothing is made equal."""
_LEAST, _MOST = 1e-5, 1e9
"""Seconds of a step; a learning rate is at most as large."""
_BYTES_A_PARAMETER = 16
"""Bytes of a weight, its gradient and AdamW's two averages in float32."""
_OBJECTIVES = {
    "causal": "predict the next token",
    "masked": "fill in masked tokens",
    "span_corruption": "restore spans, and continue texts",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison, ready to be worked on; `out` is its directory."""

    out: Path
    request: Request
    text: SharedText
    models: tuple[ComparedModel, ...]
    ablation: Ablation | None

    @property
    def seeds(self) -> int:
        """Number of seeds: one, where a model that is there already takes part."""
        return 1 if any(each.directory is not None for each in self.models) else self.request.seeds


def make_plan(request: Request, out: Path) -> Plan:
    """Plan a comparison, or read what was planned before for the same request.

    Of several processes one does it, and the others wait.

    Raises:
        UserError: the directory holds another comparison, or a symbolic link leads out of it; anything that is wrong
            with models, data or budget.
    """
    files = corpus.read_files(request.data or _data_of_runs(request), request.field)
    key_of_request = {**to_plain(request), "files": identity(files)}
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic.open_directory(out)
        with FileLock(out / ".lock"):
            if not (out / PLAN).exists():
                try:
                    _write(request, key_of_request, files, out)
                except UserError:
                    if made:
                        (out / ".lock").unlink(missing_ok=True)
                    with suppress(OSError):  # a folder with something in it stays
                        for folder in made:
                            folder.rmdir()
                    raise
            return _read(request, key_of_request, files, out)
    except OSError as error:
        raise UserError(f"The comparison can't be written to {out}: {error.strerror or error}.") from error


@lru_cache(maxsize=1)
def stored_plan(out: Path) -> Plan:
    """Read the plan of a comparison that was begun in a directory. Raises UserError as `make_plan`."""
    values: dict[str, Any] = limits.read_object(out / PLAN).get("request") or {}
    request = make(Request, {name: value for name, value in values.items() if name != "files"}, f"{out / PLAN}: ")
    return make_plan(request, out)


def _grid(request: Request) -> Ablation | None:
    return verdicts.grid(request.models[0], request.vary) if request.vary else None


def _write(request: Request, key_of_request: dict[str, Any], files: Sequence[Path], out: Path) -> None:
    if any(not each.name.startswith(".") for each in out.iterdir()):
        raise UserError(f"{out} holds something else: choose another folder with --out.")
    grid = _grid(request)
    if grid is None:
        models = matching.read_models(request.models, request.match)
    else:
        specs = verdicts.specs(grid)
        read = matching.read_models([*specs.values()], request.match)
        models = [replace(model, name=name) for model, name in zip(read, specs, strict=True)]
    tokenizer = _tokenizer_of_runs(models)
    with atomic.temporary_folder(out / DATA) as folder:
        text = corpus.prepare(folder / DATA, files, request.field, request.context, request.tokenizer, tokenizer)
        models = [_fit(model, text) for model in models]
        if request.match != "none" and not (grid and any(name.startswith(_SIZES) for name in grid.factors)):
            size, what = matching.parameters_outside_embeddings, "parameters outside embeddings"
            if request.match == "flops":
                size, what = partial(flops_per_token, window=text.window), "FLOPs a token"
            models = matching.matched(models, size, what)
        models = [_with_costs(model, models[0], request, text) for model in models]
        if request.budget.kind == "minutes":
            trained = [model for model in models if model.directory is None]
            times = seconds_per_step([model.config for model in trained], text, request)
            seconds = dict(zip([model.name for model in trained], times, strict=True))
            models = [replace(model, seconds_per_step=seconds.get(model.name)) for model in models]
        # The smallest budget is that of trying a learning rate.
        budget = request.budget.share(TRIAL if request.tune else 1.0)
        for model in models:
            if model.directory is None:
                require_step(budget, model.config, text, request.batch_size, 0, model.seconds_per_step)
        content = {"version": VERSION, "request": key_of_request, "models": [to_plain(model) for model in models]}
        atomic.move(folder / DATA, out / DATA)
    atomic.write(out / PLAN, json.dumps(content, indent=1, default=str) + "\n")


def _read(request: Request, key_of_request: dict[str, Any], files: Sequence[Path], out: Path) -> Plan:
    stored = limits.read_object(out / PLAN)
    if stored.get("version") != VERSION:
        raise UserError(f"{out} holds a comparison of another version of anyformer: choose another folder with --out.")
    if stored.get("request") != key_of_request:
        raise UserError(
            f"{out} holds another comparison, or the data has changed since: choose another folder with --out."
        )
    text = corpus.prepare(out / DATA, files, request.field, request.context, request.tokenizer, None)
    grid = _grid(request)
    try:
        models = typed(Comparison, {"models": stored.get("models")})["models"]
        _check(models, [*(request.models if grid is None else verdicts.specs(grid).values())], request, text)
    except UserError as error:
        raise UserError(f"{out / PLAN} is damaged, so choose another folder with --out: {error}") from error
    return Plan(out=out, request=request, text=text, models=models, ablation=grid)


def _check(models: Sequence[ComparedModel], specs: Sequence[str], request: Request, text: SharedText) -> None:
    """Raise UserError for models that were not planned for these specifications and this text."""
    if [model.spec for model in models] != specs or len({model.name for model in models}) < len(specs):
        raise UserError("the models are others than those of the request.")
    for model in models:
        if model.directory is not None and str(model.directory) != model.spec:
            raise UserError(f"{model.spec} was elsewhere.")
        if model.directory is None:
            times = [model.seconds_per_step or 0.0] if request.budget.kind == "minutes" else []
            if not (0 < model.learning_rate <= _MOST and all(_LEAST < seconds <= _MOST for seconds in times)):
                raise UserError(f"{model.spec} wants a positive learning_rate, and seconds_per_step where they count.")
        config, longest = model.config, model.config.context_length
        is_short = longest is not None and longest < text.context
        if is_short or config.vocab_size < text.tokenizer.vocab_size or config.head.kind != "language_model":
            raise UserError(f"{model.spec} can't read the text.")


def _fit(model: ComparedModel, text: SharedText) -> ComparedModel:
    """A model with the vocabulary and the special tokens of the shared tokenizer, and the context."""
    if model.directory is None:
        return replace(model, config=fit_model(model.config.replace(max_length=text.context), text.tokenizer, None))
    longest = model.config.context_length
    if longest is not None and longest < text.context:
        raise UserError(f"{model.spec} reads {longest} tokens at a time: give --context {longest} or less.")
    return model


def _with_costs(model: ComparedModel, first: ComparedModel, request: Request, text: SharedText) -> ComparedModel:
    """A model with its objective, learning rate and costs, and a note on depth and width where the first has others."""
    config = model.config
    run = None if model.directory is None else _training_config(model.directory)
    sizes = [(each.config.d_model, matching.depth(each.config, request.match)) for each in (model, first)]
    note = f"d_model {sizes[0][0]} and {sizes[0][1]} blocks, where {first.name} has {sizes[1][0]} and {sizes[1][1]}"
    size = sum(part.parameters for part in part_costs(config, config.max_length))
    return replace(
        model,
        objective=(run and run.objective) or _OBJECTIVES[objective_of(config)],
        learning_rate=default_learning_rate(config) if model.directory is None else 0.0,
        notes=model.notes if sizes[0] == sizes[1] else (*model.notes, note),
        parameters=size,
        parameters_outside_embeddings=matching.parameters_outside_embeddings(config),
        flops_per_token=flops_per_token(config, text.window),
        memory_bytes=_BYTES_A_PARAMETER * size,
        cache_bytes_per_token=cache_bytes_per_token(config),
    )


def _training_config(directory: Path) -> TrainConfig | None:
    """The config of a run of `anyformer train`; None where the directory holds something else."""
    path = directory / CONFIG
    return read_yaml(path) if path.is_file() and read_fine_tuning(path) is None else None


def _tokenizer_of_runs(models: Sequence[ComparedModel]) -> Tokenizer | None:
    """The tokenizer that finished models have in common, if there are any. Raises UserError if they have none."""
    chosen: tuple[str, Tokenizer] | None = None
    for model in models:
        if model.directory is None:
            continue
        if model.config.head.kind != "language_model":
            raise UserError(
                f"{model.spec} predicts no text, by which models are compared (its head is "
                f"{quote(model.config.head.kind)}): `anyformer evaluate` measures it on its own task."
            )
        tokenizer = Tokenizer.find(find_adapter(model.directory) or model_directory(model.directory))
        if tokenizer is None:
            raise UserError(f"{model.spec} has no tokenizer, so it can't be compared on a text.")
        if chosen is not None and _pipeline(tokenizer) != _pipeline(chosen[1]):
            raise UserError(
                f"{chosen[0]} and {model.spec} have different tokenizers, so nothing they predict is the same: compare "
                "runs that share one, or let them be trained anew, from their config.yaml."
            )
        chosen = chosen or (model.spec, tokenizer)
    return None if chosen is None else chosen[1]


def _pipeline(tokenizer: Tokenizer) -> object:
    """The part of a tokenizer that decides on the ids of a text, without special tokens around it."""
    pipeline = cast("dict[str, Any]", json.loads(tokenizer.backend.to_str()))
    return {name: part for name, part in pipeline.items() if name != "post_processor"}


def _data_of_runs(request: Request) -> tuple[str, ...]:
    """The data of the first finished run among the models, of which a part was held out; examples are no text."""
    configs = (_training_config(Path(spec)) for spec in request.models)
    return next((config.data for config in configs if config is not None), ())


def default_folder(request: Request) -> Path:
    """The folder of a comparison for which none is given: the same for the same request."""
    names = [Path(spec.partition(":")[0]).name for spec in request.models]
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in "-".join(names))
    return Path("comparisons") / f"{slug[:60].strip('-.')}-{key(to_plain(request))[:6]}"
