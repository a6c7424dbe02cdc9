"""From text to batches, with a tokenizer and a model's config to match.

Whatever takes long is kept in the cache: how the data is split, the tokenizer that was trained on it, its tokens. A run
on the same data finds them there and reads none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from anyformer.config import ModelConfig, SpecialTokens
from anyformer.data.batch import Batch
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
from anyformer.training.config import CompleteConfig, TrainConfig, default_tokenizer
from anyformer.training.feed import Feed, PairFeed, TextFeed

_ENOUGH = 1 << 25
"""Characters that a subword tokenizer is trained on at most; more would hardly change it."""

_TRAINING, _VALIDATION = "training", "validation"
_Config = TypeVar("_Config", bound=TrainConfig)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training needs of the data.

    Attributes:
        config: the run's, with the tokenizer named and the model as it will be built.
        feed: makes the batches.
        held_out: the validation text; pairs for sequence to sequence.
        fingerprint: of the tokens, the tokenizer and the objective: a run can be resumed only on the same.
        files: number of files.
        characters: number of characters in them.
        dropped: number of pairs that were left out because a side of them is empty.
    """

    config: CompleteConfig
    tokenizer: Tokenizer
    feed: Feed
    held_out: TokenFile | PairFile
    fingerprint: str
    files: int
    characters: int
    dropped: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which all of the data was seen once."""
        return self.feed.steps_per_epoch

    @property
    def validation_batches(self) -> int:
        """How many batches the validation text has."""
        return self.feed.validation_batches

    @property
    def validation_tokens(self) -> int | None:
        """Tokens of the validation text; None where the loss is not that of the whole text."""
        return self._held_out_text[0]

    @property
    def validation_bytes(self) -> int | None:
        """Its length in UTF-8, which turns a loss per token into bits per byte; None where that makes no sense."""
        return self._held_out_text[1]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        return self.feed.batch(step)

    def validation(self, every: int = 1) -> Iterator[Batch]:
        """Yield every so many-th batch of the validation text, the same at every call."""
        return self.feed.validation(every)

    def summary(self) -> list[str]:
        """Lines on the data, for people."""
        lines = [f"data       {self.characters:,} characters in {self.files:,} file{'s' * (self.files != 1)}"]
        if self.dropped:
            pairs = "1 pair is" if self.dropped == 1 else f"{self.dropped:,} pairs are"
            lines.append(f"           {pairs} left out: one side is empty")
        return [*lines, f"{self.feed.in_words()} ({self.config.tokenizer})"]

    @property
    def _held_out_text(self) -> tuple[int | None, int | None]:
        if self.config.objective != "causal" or isinstance(self.held_out, PairFile):
            return None, None
        return self.held_out.header.tokens, self.held_out.header.bytes


def prepare(config: CompleteConfig, given: frozenset[str], console: Console) -> Prepared:
    """Read the data, train or load the tokenizer, tokenize; or find all that in the cache.

    Args:
        config: as `TrainConfig.complete` made it.
        given: the fields of the model that the user has set.
        console: where to show what is going on.

    Raises:
        UserError: data that is missing, empty or not text; a tokenizer that can't be had or does not fit the model; a
            cache that can't be written.
    """
    spec = config.tokenizer
    if spec is not None and not Path(spec).exists():
        parse_spec(spec)
    cache = Cache(config.cache)
    if config.objective == "seq2seq":
        return _prepare(config, given, console, cache, _pairs, tokenize_pairs, PairFile.open, PairFeed)
    return _prepare(config, given, console, cache, _documents, tokenize_splits, TokenFile.open, TextFeed)


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


_Item = TypeVar("_Item")
_ItemOut = TypeVar("_ItemOut", covariant=True)
_ItemIn = TypeVar("_ItemIn", contravariant=True)
_File = TypeVar("_File", TokenFile, PairFile)


class _Corpus(Protocol[_ItemOut]):
    """A `Corpus` or a `PairCorpus`."""

    files: list[Path]
    split: Split

    def __iter__(self) -> Iterator[_ItemOut]: ...

    def parts(self) -> Iterator[tuple[bool, _ItemOut]]: ...


class _Writes(Protocol[_ItemIn]):
    """`tokenize_splits` or `tokenize_pairs`."""

    def __call__(
        self,
        documents: Iterable[tuple[str, _ItemIn]],
        tokenizer: Tokenizer,
        paths: Mapping[str, Path],
        /,
        *,
        workers: int | None,
        progress: Callable[[int], None] | None,
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class _Data(Generic[_Item]):
    """What is to be tokenized.

    Attributes:
        corpus: to train on; and to validate on, where nothing else is.
        held_out: to validate on.
        key: of the content of both.
        texts: of an item.
    """

    corpus: _Corpus[_Item]
    held_out: _Corpus[_Item] | None
    key: str
    texts: Callable[[_Item], Iterable[str | Document]]

    def sums(self) -> Split:
        """What there is of both together."""
        splits = [corpus.split for corpus in (self.corpus, self.held_out) if corpus is not None]
        return Split(
            sum(split.characters for split in splits),
            sum(split.count for split in splits),
            sum(split.dropped for split in splits),
        )

    def parts(self) -> Iterator[tuple[str, _Item]]:
        """Everything, with the part that it belongs to."""
        if self.held_out is None:
            for held_out, item in self.corpus.parts():
                yield _VALIDATION if held_out else _TRAINING, item
        else:
            for item in self.corpus:
                yield _TRAINING, item
            for item in self.held_out:
                yield _VALIDATION, item

    def all_texts(self) -> Iterator[str | Document]:
        """The texts of everything."""
        return (text for item in chain(self.corpus, self.held_out or ()) for text in self.texts(item))

    def sample(self) -> Iterator[str | Document]:
        """Evenly spread texts to train on, of about `_ENOUGH` characters together."""
        every = -(-self.corpus.split.characters // _ENOUGH)
        training = (item for part, item in self.parts() if part == _TRAINING)
        return (text for item in islice(training, 0, None, every) for text in self.texts(item))


def _prepare(
    config: CompleteConfig,
    given: frozenset[str],
    console: Console,
    cache: Cache,
    find: Callable[[CompleteConfig, Cache, Callable[[str], None]], _Data[_Item]],
    write: _Writes[_Item],
    read: Callable[[Path], _File],
    make_feed: Callable[[CompleteConfig, Tokenizer, _File, _File], Feed],
) -> Prepared:
    with console.status("reading the data") as status:
        config = keep_standard_input(config)
        data = find(config, cache, status.update)
    spec = config.tokenizer or default_tokenizer(config.objective, data.corpus.split.characters)
    with console.status(f"training the tokenizer {spec}"):
        tokenizer = _tokenizer(spec, config, data, cache)
    model = fit_model(config.model, tokenizer, given)
    total = data.sums()

    def make(folder: Path) -> None:
        with _Bar(console, total.characters) as bar:
            paths = {name: folder / name for name in (_TRAINING, _VALIDATION)}
            write(data.parts(), tokenizer, paths, workers=config.workers, progress=bar.advance)

    name = key("tokens", FORMAT, data.key, tokenizer.fingerprint, tokenizer.separator)
    training, held_out = cache.entry(
        "tokens", name, make, lambda folder: (read(folder / _TRAINING), read(folder / _VALIDATION))
    )
    feed = make_feed(config, tokenizer, training, held_out)
    return Prepared(
        replace(config, tokenizer=spec, model=model),
        tokenizer,
        feed,
        held_out,
        key(feed.digest, tokenizer.fingerprint, config.objective),
        len(data.corpus.files) + (len(data.held_out.files) if data.held_out is not None else 0),
        total.characters,
        total.dropped,
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


def _documents(config: CompleteConfig, cache: Cache, say: Callable[[str], None]) -> _Data[Document]:
    def corpus(paths: Iterable[str | Path]) -> tuple[Corpus, str]:
        files = find_files(materialize(map(str, paths), (config.field,), cache, progress=say))
        name = key("documents", identity(files), config.field)
        split = _split(cache, name, lambda: Corpus(files, config.field).split)
        return Corpus(files, config.field, split), name

    own, name = corpus(config.data or standard_library())
    held_out, other = corpus(config.validation) if config.validation else (None, "")
    return _Data(own, held_out, key(name, other), lambda document: (document,))


def _pairs(config: CompleteConfig, cache: Cache, say: Callable[[str], None]) -> _Data[Pair]:
    if config.source is None or config.target is None:
        raise ValueError("sequence to sequence has a source and a target")

    def corpus(source: str, target: str, paths: Iterable[str]) -> tuple[PairCorpus, str]:
        found = materialize(paths, (source, target), cache, progress=say)
        fields = (source, target) if found else None
        files = record_files(found) if found else parallel_files(source, target)
        name = key("pairs", identity(files), fields)
        split = _split(cache, name, lambda: PairCorpus(files, fields).split)
        return PairCorpus(files, fields, split), name

    own, name = corpus(config.source, config.target, config.data)
    held_out, other = None, ""
    if config.validation and config.data:
        held_out, other = corpus(config.source, config.target, config.validation)
    elif config.validation:
        if len(config.validation) != 2:
            raise UserError("--validation of parallel files is two files: the source, then the target.")
        held_out, other = corpus(*config.validation, ())
    return _Data(own, held_out, key(name, other), lambda pair: (pair.source, pair.target))


def _split(cache: Cache, name: str, scan: Callable[[], Split]) -> Split:
    file = "split.npz"
    return cache.entry(
        "splits", name, lambda folder: scan().save(folder / file), lambda folder: Split.load(folder / file)
    )


def _tokenizer(spec: str, config: CompleteConfig, data: _Data[_Item], cache: Cache) -> Tokenizer:
    if Path(spec).exists():
        return Tokenizer.load(model_directory(spec))

    def train(folder: Path) -> None:
        # A tokenizer of characters must know those of the validation text, too.
        texts = data.all_texts() if parse_spec(spec)[1] is None else data.sample()
        Tokenizer.train(texts, spec, special=config.objective).save(folder)

    found = cache.entry("tokenizers", key("tokenizer", data.key, spec, config.objective), train, Tokenizer.load)
    return Tokenizer(found.backend, {**found.config, "model_max_length": config.context})


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
