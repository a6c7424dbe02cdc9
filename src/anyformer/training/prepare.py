"""From text to token files, with a tokenizer and a model's config to match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from rich.console import Console

from anyformer.config import ModelConfig, SpecialTokens
from anyformer.data.objectives import Objective, objective
from anyformer.data.sources import Document, standard_library
from anyformer.data.split import Corpus
from anyformer.data.tokens import TokenFile, tokenise
from anyformer.errors import UserError
from anyformer.families import to_huggingface
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.training import parse_spec
from anyformer.training.config import CompleteConfig, default_tokenizer, objective_name
from anyformer.training.run_directory import model_directory

_ENOUGH = 1 << 25
"""Characters that a subword tokenizer is trained on at most; more would hardly change it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training needs of the data.

    Attributes:
        config: the run's, with the tokenizer named and the model as it will be built.
        files: number of files read.
        characters: number of characters in them.
    """

    config: CompleteConfig
    tokenizer: Tokenizer
    objective: Objective
    training: TokenFile
    validation: TokenFile
    files: int
    characters: int


def prepare(config: CompleteConfig, given: frozenset[str], folder: Path, console: Console) -> Prepared:
    """Read the data, train or load the tokenizer, tokenise.

    Args:
        config: as `TrainConfig.complete` made it.
        given: the fields of the model that the user has set.
        folder: where to put the token files.
        console: where to show what is going on.

    Raises:
        UserError: data that is missing, empty or not text; a tokenizer that can't be had or does not fit the model.
    """
    kind = objective_name(config.model, config.preset)
    spec = config.tokenizer
    if spec is not None and not Path(spec).exists():
        parse_spec(spec)
    with console.status("reading the data"):
        corpus = Corpus(config.data or standard_library())
        held_out = Corpus(config.validation) if config.validation else None
    spec = spec or default_tokenizer(config.model, corpus.characters)
    with console.status(f"training the tokenizer {spec}"):
        tokenizer = _tokenizer(spec, kind, corpus, held_out, config.context)
    chosen = objective(kind, tokenizer)
    model = fit_model(config.model, tokenizer, given)
    parts: dict[str, Iterable[Document]] = {
        "training": corpus.training() if held_out is None else corpus,
        "validation": corpus.validation() if held_out is None else held_out,
    }
    with console.status("tokenising"):
        training, validation = (tokenise(part, tokenizer, folder / f"{name}.bin") for name, part in parts.items())
    return Prepared(
        replace(config, model=model, tokenizer=spec),
        tokenizer,
        chosen,
        training,
        validation,
        len(corpus.files),
        corpus.characters,
    )


def _tokenizer(spec: str, kind: str, corpus: Corpus, held_out: Corpus | None, context: int) -> Tokenizer:
    if Path(spec).exists():
        return Tokenizer.load(model_directory(spec))
    if parse_spec(spec)[1] is None:
        # A tokenizer of characters must know those of the validation text, too.
        texts = chain(corpus, held_out or ())
    else:
        texts = _sample(corpus.training() if held_out is None else iter(corpus), corpus.characters)
    return Tokenizer.train(texts, spec, special=kind, model_max_length=context)


def _sample(documents: Iterator[Document], characters: int) -> Iterator[Document]:
    """Evenly spread documents of about `_ENOUGH` characters together."""
    every = -(-characters // _ENOUGH)
    for number, document in enumerate(documents):
        if number % every == 0:
            yield document


def fit_model(model: ModelConfig, tokenizer: Tokenizer, given: frozenset[str]) -> ModelConfig:
    """The model with the tokenizer's vocabulary and special tokens.

    Args:
        model: its config.
        tokenizer: the one it will be trained with.
        given: the fields that the user has set: with `vocab_size` among them, that stays.

    Raises:
        UserError: the model's vocabulary is too small for the tokenizer.
    """
    size = model.vocab_size if "vocab_size" in given else tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(
            f"--model.vocab-size {size} is too small for the tokenizer, which has {tokenizer.vocab_size} tokens: "
            "leave it out, or choose a smaller tokenizer."
        )
    eos = () if tokenizer.eos is None else (tokenizer.eos,)
    tokens = SpecialTokens(bos=tokenizer.bos, eos=eos, pad=tokenizer.pad)
    # Some families' files say the padding token twice, as a row of the table that is never read as well.
    paddings = dict.fromkeys((tokenizer.pad if model.embedding.padding is not None else None, tokenizer.pad))
    fits = [_with(model, size, tokens, padding) for padding in paddings]
    return next((fit for fit in fits if to_huggingface(fit)[0].model_type == model.model_type), fits[0])


def _with(model: ModelConfig, size: int, tokens: SpecialTokens, padding: int | None) -> ModelConfig:
    position = model.position
    if position.skip_padding and padding is not None:
        # Such models number their positions from the one after the padding token's id.
        position = replace(position, offset=padding + 1)
    embedding = replace(model.embedding, padding=padding)
    return replace(model, vocab_size=size, tokens=tokens, embedding=embedding, position=position)
