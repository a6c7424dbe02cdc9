"""From text to batches, with a tokenizer and a model's config to match.

Whatever takes long is kept in the cache: how the data is split, the tokenizer that was trained on it, its tokens. A run
on the same data finds them there and reads none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from anyformer.config import ModelConfig, SpecialTokens
from anyformer.data.corpus import Corpus, Split
from anyformer.data.disk_cache import Cache, identity, key
from anyformer.data.materialize import STANDARD_INPUT, materialize
from anyformer.data.objectives import decoder_start
from anyformer.data.pair_corpus import Pair, PairCorpus, parallel_files, record_files
from anyformer.data.pair_files import PairFile, tokenize_pairs
from anyformer.data.sources import Document, find_files, standard_library
from anyformer.data.token_files import FORMAT, TokenFile, tokenize_splits
from anyformer.errors import UserError
from anyformer.families import to_huggingface
from anyformer.runs.directory import model_directory
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.training import parse_spec
from anyformer.training.batcher import Batcher, pair_batches, text_batches
from anyformer.training.config import CompleteConfig, TrainConfig, default_tokenizer

_ENOUGH = 1 << 25
"""Characters that a subword tokenizer is trained on at most; more would hardly change it."""

_TRAINING, _VALIDATION = "training", "validation"
_Config = TypeVar("_Config", bound=TrainConfig)
_Item = TypeVar("_Item")
_File = TypeVar("_File")


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What training needs of the data.

    Attributes:
        config: the run's, with the tokenizer named and the model as it will be built.
        batches: for training and for validation.
        held_out: the validation text; pairs for sequence to sequence.
        fingerprint: of the tokens, the tokenizer and the objective: a run can be resumed only on the same.
        files: number of files.
        characters: number of characters in them.
        dropped: number of pairs that were left out because a side of them is empty.
    """

    config: CompleteConfig
    tokenizer: Tokenizer
    batches: Batcher
    held_out: TokenFile | PairFile
    fingerprint: str
    files: int
    characters: int
    dropped: int

    @property
    def validation_size(self) -> tuple[int, int] | None:
        """Tokens of the validation text and its bytes in UTF-8, which turn a loss into bits per byte.

        None where the loss is not that of the whole text.
        """
        if self.config.objective != "causal" or isinstance(self.held_out, PairFile):
            return None
        return self.held_out.header.tokens, self.held_out.header.bytes

    def summary(self) -> list[str]:
        """Lines on the data, for people."""
        lines = [f"data       {self.characters:,} characters in {self.files:,} file{'s' * (self.files != 1)}"]
        if self.dropped:
            pairs = "1 pair is" if self.dropped == 1 else f"{self.dropped:,} pairs are"
            lines.append(f"           {pairs} left out: one side is empty")
        return [*lines, f"{self.batches.summary} ({self.config.tokenizer})"]


def prepare(config: CompleteConfig, console: Console) -> TrainingData:
    """Read the data, train or load the tokenizer, tokenize; or find all that in the cache.

    Args:
        config: as `TrainConfig.complete` made it.
        console: where to show what is going on.

    Raises:
        UserError: data that is missing, empty or not text; a tokenizer that can't be had or does not fit the model; a
            cache that can't be written.
    """
    spec = config.tokenizer
    if spec is not None and not Path(spec).exists():
        parse_spec(spec)
    return (_prepare_pairs if config.objective == "seq2seq" else _prepare_text)(config, console)


def keep_standard_input(config: _Config) -> _Config:
    """Return the config with `-` replaced by a file of the cache that standard input is written to.

    The run can then be repeated, and its other processes, which have no standard input, find it there, too. Where there
    is no `-` nothing is done.

    Raises:
        UserError: there is nothing on standard input, or the cache can't be written.
    """
    if STANDARD_INPUT not in (*config.data, *config.validation):
        return config
    cache = Cache(config.cache)

    def kept(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(materialize((path,), (), cache)[0] if path == STANDARD_INPUT else path for path in paths)

    return replace(config, data=kept(config.data), validation=kept(config.validation))


def _prepare_text(config: CompleteConfig, console: Console) -> TrainingData:
    cache = Cache(config.cache)

    def find(paths: Iterable[str | Path]) -> tuple[Corpus, str]:
        files = find_files(materialize(map(str, paths), (config.field,), cache, progress=status.update))
        name = key("documents", identity(files), config.field)
        return Corpus(files, config.field, _split(cache, name, lambda: Corpus(files, config.field).split)), name

    with console.status("reading the data") as status:
        config = keep_standard_input(config)
        corpus, name = find(config.data or standard_library())
        held_out, other = find(config.validation) if config.validation else (None, "")
    digest = key(name, other)
    training = (document for part, document in _parts(corpus.parts(), held_out) if part == _TRAINING)
    sample = _every_so_many(training, corpus.split.characters)
    config, tokenizer = _settle(config, console, cache, digest, corpus, chain(corpus, held_out or ()), sample)

    def write(paths: Mapping[str, Path], advance: Callable[[int], None]) -> None:
        parts = _parts(corpus.parts(), held_out)
        tokenize_splits(parts, tokenizer, paths, workers=config.workers, progress=advance)

    corpora = [corpus] if held_out is None else [corpus, held_out]
    files = _tokens(console, cache, digest, tokenizer, corpora, write, TokenFile.open)
    return _training_data(config, tokenizer, text_batches(config, tokenizer, *files), files[1], corpora)


def _prepare_pairs(config: CompleteConfig, console: Console) -> TrainingData:
    cache = Cache(config.cache)

    def find(source: str, target: str, paths: Iterable[str]) -> tuple[PairCorpus, str]:
        found = materialize(paths, (source, target), cache, progress=status.update)
        fields = (source, target) if found else None
        files = record_files(found) if found else parallel_files(source, target)
        name = key("pairs", identity(files), fields)
        return PairCorpus(files, fields, _split(cache, name, lambda: PairCorpus(files, fields).split)), name

    source, target = config.source, config.target
    if source is None or target is None:
        raise ValueError("sequence to sequence has a source and a target")
    with console.status("reading the data") as status:
        config = keep_standard_input(config)
        corpus, name = find(source, target, config.data)
        held_out, other = None, ""
        if config.validation and config.data:
            held_out, other = find(source, target, config.validation)
        elif config.validation:
            if len(config.validation) != 2:
                raise UserError("--validation of parallel files is two files: the source, then the target.")
            held_out, other = find(*config.validation, ())
    digest = key(name, other)
    training = (pair for part, pair in _parts(corpus.parts(), held_out) if part == _TRAINING)
    sample = _every_so_many(training, corpus.split.characters)
    texts = (_sides(pairs) for pairs in (chain(corpus, held_out or ()), sample))
    config, tokenizer = _settle(config, console, cache, digest, corpus, *texts)

    def write(paths: Mapping[str, Path], advance: Callable[[int], None]) -> None:
        parts = _parts(corpus.parts(), held_out)
        tokenize_pairs(parts, tokenizer, paths, workers=config.workers, progress=advance)

    corpora = [corpus] if held_out is None else [corpus, held_out]
    files = _tokens(console, cache, digest, tokenizer, corpora, write, PairFile.open)
    return _training_data(config, tokenizer, pair_batches(config, tokenizer, *files), files[1], corpora)


def _split(cache: Cache, name: str, scan: Callable[[], Split]) -> Split:
    file = "split.npz"
    return cache.entry(
        "splits", name, lambda folder: scan().save(folder / file), lambda folder: Split.load(folder / file)
    )


def _parts(own: Iterable[tuple[bool, _Item]], held_out: Iterable[_Item] | None) -> Iterator[tuple[str, _Item]]:
    """Everything, with the part that it belongs to: without a validation text a tenth of the data is held out."""
    for holds_out, item in own:
        yield _VALIDATION if holds_out and held_out is None else _TRAINING, item
    for item in held_out or ():
        yield _VALIDATION, item


def _every_so_many(items: Iterable[_Item], characters: int) -> Iterator[_Item]:
    """Evenly spread items, of about `_ENOUGH` characters together."""
    return islice(items, 0, None, -(-characters // _ENOUGH))


def _sides(pairs: Iterable[Pair]) -> Iterator[str]:
    return (text for pair in pairs for text in (pair.source, pair.target))


def _settle(
    config: CompleteConfig,
    console: Console,
    cache: Cache,
    digest: str,
    corpus: Corpus | PairCorpus,
    texts: Iterable[str | Document],
    sample: Iterable[str | Document],
) -> tuple[CompleteConfig, Tokenizer]:
    """Train or load the tokenizer; returns it and the config with it and the model's vocabulary settled."""
    spec = config.tokenizer or default_tokenizer(config.objective, corpus.split.characters)

    def train(folder: Path) -> None:
        # A tokenizer of characters must know those of the validation text, too.
        read = texts if parse_spec(spec)[1] is None else sample
        Tokenizer.train(read, spec, special=config.objective).save(folder)

    with console.status(f"training the tokenizer {spec}"):
        if Path(spec).exists():
            tokenizer = Tokenizer.load(model_directory(spec))
        else:
            name = key("tokenizer", digest, spec, config.objective)
            found = cache.entry("tokenizers", name, train, Tokenizer.load)
            tokenizer = Tokenizer(found.backend, {**found.config, "model_max_length": config.context})
    return replace(config, tokenizer=spec, model=fit_model(config.model, tokenizer, config.vocab_size)), tokenizer


def _tokens(
    console: Console,
    cache: Cache,
    digest: str,
    tokenizer: Tokenizer,
    corpora: Sequence[Corpus | PairCorpus],
    write: Callable[[Mapping[str, Path], Callable[[int], None]], None],
    read: Callable[[Path], _File],
) -> tuple[_File, _File]:
    """The token files of the training and the validation text, written unless the cache has them."""

    def make(folder: Path) -> None:
        with _Bar(console, sum(corpus.split.characters for corpus in corpora)) as bar:
            write({name: folder / name for name in (_TRAINING, _VALIDATION)}, bar.advance)

    name = key("tokens", FORMAT, digest, tokenizer.fingerprint, tokenizer.separator)
    return cache.entry("tokens", name, make, lambda folder: (read(folder / _TRAINING), read(folder / _VALIDATION)))


def _training_data(
    config: CompleteConfig,
    tokenizer: Tokenizer,
    batches: Batcher,
    held_out: TokenFile | PairFile,
    corpora: Sequence[Corpus | PairCorpus],
) -> TrainingData:
    return TrainingData(
        config,
        tokenizer,
        batches,
        held_out,
        fingerprint=key(batches.digest, tokenizer.fingerprint, config.objective),
        files=sum(len(corpus.files) for corpus in corpora),
        characters=sum(corpus.split.characters for corpus in corpora),
        dropped=sum(corpus.split.dropped for corpus in corpora),
    )


class _Bar:
    """How far tokenizing is, on a terminal. A context manager."""

    def __init__(self, console: Console, characters: int) -> None:
        columns = (TextColumn("tokenizing"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task("tokenizing", total=characters)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def advance(self, characters: int) -> None:
        self._bar.advance(self._task, characters)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def fit_model(model: ModelConfig, tokenizer: Tokenizer, vocab_size: int | None) -> ModelConfig:
    """The model with the tokenizer's vocabulary and special tokens.

    Args:
        model: its config.
        tokenizer: the one it will be trained with.
        vocab_size: rows of its table; None: as many as the tokenizer has tokens.

    Raises:
        UserError: the model's vocabulary is too small for the tokenizer.
    """
    size = tokenizer.vocab_size if vocab_size is None else vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(
            f"--model.vocab-size {size} is too small for the tokenizer, which has {tokenizer.vocab_size} tokens: "
            "leave it out, or choose a smaller tokenizer."
        )
    eos = () if tokenizer.eos is None else (tokenizer.eos,)
    start = decoder_start(model.special_tokens, tokenizer) if model.is_encoder_decoder else None
    tokens = SpecialTokens(bos=tokenizer.bos, eos=eos, pad=tokenizer.pad, decoder_start=start)
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
    source = None if model.source_vocab_size is None else size
    return replace(
        model, vocab_size=size, source_vocab_size=source, special_tokens=tokens, embedding=embedding, position=position
    )
