"""From text to batches, with a tokenizer and a model's config to match.

The split of the data, the tokenizer that was trained on it and its tokens are kept in the cache: another run on the
same data reads none of it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from anyformer.config import ModelConfig, SpecialTokens
from anyformer.console import Console
from anyformer.data.corpus import Corpus, Part, Split, standard_library
from anyformer.data.disk_cache import Cache, identity, key
from anyformer.data.documents import SHARD, Document
from anyformer.data.input_files import find_files, naming_all
from anyformer.data.materialize import STANDARD_INPUT, materialize, utf8_files
from anyformer.data.objectives import decoder_start
from anyformer.data.pairs import Pair, PairCorpus, PairFile, parallel_files, record_files, tokenize_pairs
from anyformer.data.rows import UnknownFieldError
from anyformer.data.shards import measure_shards, tokenize_shards
from anyformer.data.token_files import FORMAT, TokenFile, tokenize_splits
from anyformer.errors import UserError
from anyformer.families import to_huggingface
from anyformer.processes import ProcessExecutor, cores, workers
from anyformer.runs.directory import model_directory
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.training import input_names, parse_spec
from anyformer.training.batcher import Batcher, pair_batches, text_batches
from anyformer.training.config import CompleteConfig, TrainConfig, default_tokenizer

_ENOUGH = 1 << 25
"""Characters that a subword tokenizer is trained on at most; more would hardly change it."""

_TRAINING, _VALIDATION = _SPLITS = "training", "validation"
_Config = TypeVar("_Config", bound=TrainConfig)
_Corpus: TypeAlias = Corpus | PairCorpus
_ShowProgress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Data in the form that training needs.

    Attributes:
        config: the run's, with the tokenizer named and the model as it will be built.
        held_out: the text or the pairs to validate on.
        fingerprint: of the tokens, the tokenizer and the objective: a run can be resumed only on the same.
    """

    config: CompleteConfig
    tokenizer: Tokenizer
    batches: Batcher
    held_out: TokenFile | PairFile
    fingerprint: str
    summary: Sequence[str]


def prepare(config: CompleteConfig, console: Console, tokenizer: Tokenizer | None = None) -> TrainingData:
    """Read the data, train or load the tokenizer, and tokenize; or take all that from the cache.

    Args:
        tokenizer: the tokenizer, of which the config has only the name; None: the config's is loaded or trained.

    Raises:
        UserError: data that is missing, empty or not text; a tokenizer that can't be had or does not fit the model; a
            cache that can't be written.
    """
    if tokenizer is None and config.tokenizer is not None and not Path(config.tokenizer).exists():
        parse_spec(config.tokenizer)
    cache = Cache(config.cache)
    pairs = config.objective == "seq2seq"
    with console.status("reading the data") as status:
        config = keep_standard_input(config)
        read = _pair_corpora if pairs else _text_corpora
        corpora, names = zip(*read(config, cache, lambda line: status.update(Text(line))), strict=True)
    digest = key(*(*names, "")[:2])
    characters = sum(corpus.split.characters for corpus in corpora)
    spec = config.tokenizer or default_tokenizer(config.objective, corpora[0].split.characters)
    model = config.model
    if tokenizer is None:
        with console.status(f"training the tokenizer {spec}"):
            tokenizer = _tokenizer(spec, config, cache, digest, corpora)
        model = fit_model(model, tokenizer, config.vocab_size)
    config = replace(config, tokenizer=spec, model=model)
    name = key("tokens", FORMAT, digest, tokenizer.fingerprint, tokenizer.separator)
    kind: Any = PairFile if pairs else TokenFile
    tokenize: Any = tokenize_pairs if pairs else tokenize_splits
    make_batches: Any = pair_batches if pairs else text_batches

    def write(folder: Path) -> None:
        columns = TextColumn("tokenizing", markup=False), BarColumn(24), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            advance = partial(bar.advance, bar.add_task("tokenizing", total=characters))
            paths = {split: folder / split for split in _SPLITS}
            parts = [] if pairs else _parts(corpora)
            if len(parts) <= len(corpora):
                tokenize(_items(corpora), tokenizer, paths, workers=config.workers, progress=advance)
                return
            each = partial(advance, characters / len(parts))
            with _workers(config) as executor:
                tokenize_shards(cache, name, executor, parts, tokenizer, paths, progress=each)

    tokens = cache.entry("tokens", name, write, lambda folder: [kind.open(folder / split) for split in _SPLITS])
    batches: Batcher = make_batches(config, tokenizer, *tokens)
    files, dropped = sum(len(corpus.files) for corpus in corpora), sum(corpus.split.dropped for corpus in corpora)
    summary = [f"data       {characters:,} characters in {files:,} file{'s' * (files != 1)}"]
    if dropped:
        left_out = "1 pair is" if dropped == 1 else f"{dropped:,} pairs are"
        summary.append(f"           {left_out} left out: one side is empty")
    return TrainingData(
        config,
        tokenizer,
        batches,
        held_out=tokens[1],
        fingerprint=key(batches.digest, tokenizer.fingerprint, config.objective),
        summary=[*summary, f"{batches.summary} ({config.tokenizer})"],
    )


def keep_standard_input(config: _Config) -> _Config:
    """The config with `-` replaced by a file of the cache that standard input is written to.

    The run can then be repeated, and its other processes, which have no standard input, find it there, too.

    Raises UserError if there is nothing on standard input, or the cache can't be written.
    """
    if STANDARD_INPUT not in (*config.data, *config.validation):
        return config
    cache = Cache(config.cache)

    def kept(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(materialize((path,), (), cache)[0] if path == STANDARD_INPUT else path for path in paths)

    return replace(config, data=kept(config.data), validation=kept(config.validation))


def _text_corpora(config: CompleteConfig, cache: Cache, progress: _ShowProgress) -> Iterator[tuple[_Corpus, str]]:
    """The texts to train on, and those to validate on if there are any, each with a key of its content."""
    for paths in (config.data or standard_library(), config.validation):
        if paths:
            named = find_files(materialize(map(str, paths), (config.field,), cache, progress=progress))
            files = [*utf8_files(named, cache, config.encoding).values()]
            name = key("documents", identity(files), config.field, SHARD)
            corpus = partial(Corpus, files, config.field, max_record_bytes=config.max_record_bytes)

            def measured(corpus: Callable[..., Corpus] = corpus, name: str = name) -> Corpus:
                with _workers(config) as executor:
                    return corpus(measure=partial(measure_shards, cache, name, executor))

            try:
                with naming_all(files):
                    complete = _with_split(corpus, cache, name, measured)
            except UnknownFieldError as error:
                advice = "Name that of the text with --field, of pairs with --source and --target."
                raise UserError(f"{error} {advice}") from None
            yield complete, name


def _pair_corpora(config: CompleteConfig, cache: Cache, progress: _ShowProgress) -> Iterator[tuple[_Corpus, str]]:
    """The pairs to train on, and those to validate on if there are any, each with a key of its content."""
    source, target, validation = str(config.source), str(config.target), config.validation
    if validation and not config.data and len(validation) != 2:
        raise UserError("--validation of parallel files is two files: the source, then the target.")
    corpora = [(source, target, config.data)]
    if validation:
        corpora.append((source, target, validation) if config.data else (validation[0], validation[1], ()))
    for first, second, paths in corpora:
        records = materialize(paths, (first, second), cache, progress=progress)
        fields = (first, second) if records else None
        files = record_files(records) if records else parallel_files(first, second)
        files = [*utf8_files(files, cache, config.encoding).values()]
        name = key("pairs", identity(files), fields)
        corpus = partial(PairCorpus, files, fields, max_record_bytes=config.max_record_bytes)
        yield _with_split(corpus, cache, name), name


def _with_split(
    corpus: Callable[..., _Corpus], cache: Cache, name: str, measured: Callable[[], _Corpus] | None = None
) -> _Corpus:
    """A corpus with its split, which is kept in the cache, for finding it, by `measured`, reads all of the data."""
    file, measured = "split.npz", measured or corpus
    split = cache.entry(
        "splits", name, lambda folder: measured().split.save(folder / file), lambda folder: Split.load(folder / file)
    )
    return corpus(split=split)


def _workers(config: CompleteConfig) -> AbstractContextManager[Executor]:
    """The processes that tokenize what is more than one shard: of a scheduler, or as many here as there are cores."""
    if config.scheduler is not None:
        return workers(config.scheduler)
    return ProcessExecutor(config.workers or cores(), 1)


def _parts(corpora: Sequence[Corpus]) -> list[tuple[Part, tuple[str, str]]]:
    """The parts that `_items` can be read in, each with the splits of what is for training and of what is held out."""
    corpus, *validation = corpora
    names = (_TRAINING, _TRAINING if validation else _VALIDATION)
    whole = (Part(part.shard) for each in validation for part in each.parts())
    return [*((part, names) for part in corpus.parts()), *((part, (_VALIDATION, _VALIDATION)) for part in whole)]


def _items(corpora: Sequence[_Corpus]) -> Iterator[tuple[str, Document | Pair]]:
    """All documents or pairs, each with its split: a tenth of the data is held out unless there is a second corpus."""
    corpus, *validation = corpora
    for held_out, item in corpus.labeled():
        yield _VALIDATION if held_out and not validation else _TRAINING, item
    for item in chain(*validation):
        yield _VALIDATION, item


def _tokenizer(spec: str, config: CompleteConfig, cache: Cache, digest: str, corpora: Sequence[_Corpus]) -> Tokenizer:
    """The tokenizer from its path, or else from the cache, where it is trained the first time."""
    if Path(spec).exists():
        return Tokenizer.load(model_directory(spec))

    def train(folder: Path) -> None:
        items = chain(*corpora)
        if parse_spec(spec)[1] is not None:
            # Evenly spread items are enough. A tokenizer of characters must know all, those of the validation text too.
            training = (item for split, item in _items(corpora) if split == _TRAINING)
            items = islice(training, 0, None, -(-corpora[0].split.characters // _ENOUGH))
        texts = chain.from_iterable((i.source, i.target) if isinstance(i, Pair) else (i,) for i in items)
        Tokenizer.train(texts, spec, special=config.objective).save(folder)

    trained = cache.entry("tokenizers", key("tokenizer", digest, spec, config.objective), train, Tokenizer.load)
    names = input_names(segments=config.model.embedding.segments > 1)  # RoBERTa has one, which tells nothing apart
    settings = {**trained.config, "model_max_length": config.context, "model_input_names": names}
    return Tokenizer(trained.backend, settings)


def fit_model(model: ModelConfig, tokenizer: Tokenizer, vocab_size: int | None) -> ModelConfig:
    """The model with the tokenizer's special tokens, and with its vocabulary where `vocab_size` is None.

    Raises UserError if the model's vocabulary is too small for the tokenizer.
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
    models = [_with(model, size, tokens, padding) for padding in paddings]
    return next((each for each in models if to_huggingface(each)[0].model_type == model.model_type), models[0])


def _with(model: ModelConfig, size: int, tokens: SpecialTokens, padding: int | None) -> ModelConfig:
    position = model.position
    if position.skip_padding and padding is not None:
        # Such models number their positions from the one after the padding token's id.
        position = replace(position, offset=padding + 1)
    return replace(
        model,
        vocab_size=size,
        source_vocab_size=None if model.source_vocab_size is None else size,
        special_tokens=tokens,
        embedding=replace(model.embedding, padding=padding),
        position=position,
    )
