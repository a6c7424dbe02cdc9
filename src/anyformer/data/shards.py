"""Shards of a corpus, measured and tokenized in processes here or elsewhere, of which any may be killed.

::

    CACHE/shards/KEY/00000/    what was made of the first shard, until that of all is put together

A folder is there once it is whole, so work that was stopped goes on with those that are there.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from anyformer import atomic
from anyformer.data.corpus import Part, Sizes
from anyformer.data.disk_cache import Cache
from anyformer.data.documents import Shard
from anyformer.data.token_files import join, tokenize_splits
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

_FOLDER = "shards"
_SIZES = "sizes.npz"

T = TypeVar("T")


def measure_shards(
    cache: Cache, name: str, executor: Executor, measure: Callable[[Shard], Sizes], shards: Iterable[Shard]
) -> Iterator[Sizes]:
    """The sizes of shards, in order. A single one is measured in this process.

    Args:
        name: a `key` of the files.
        executor: its workers see files and cache under the same paths.

    Raises:
        UserError: what reading raises, the cache can't be written, or a process was killed.
    """
    shards = list(shards)
    if len(shards) == 1:
        yield measure(shards[0])
        return
    for folder in _make_each(cache, name, partial(_write_sizes, measure), shards, executor):
        yield _read_sizes(folder)
    _forget(cache, name)


def tokenize_shards(
    cache: Cache,
    name: str,
    executor: Executor,
    parts: Sequence[tuple[Part, tuple[str, str]]],
    tokenizer: Tokenizer,
    paths: Mapping[str, Path],
    *,
    progress: Callable[[], object],
) -> None:
    """Write parts of a corpus to the token file of each split, as `tokenize_splits` does.

    Args:
        name: a `key` of files and tokenizer.
        parts: each with the names of the splits that its documents for training and those held out belong to.
        progress: called after each part.

    Raises:
        UserError: as `measure_shards`.
        OSError: a file can't be written.
    """
    saved = cache.entry(f"{_FOLDER}/{name}", "tokenizer", tokenizer.save, Path)
    made: list[Path] = []
    for folder in _make_each(cache, name, partial(_write_tokens, saved.absolute()), parts, executor):
        made.append(folder)
        progress()
    for split, path in paths.items():
        join([file for folder in made if (file := folder / split).exists()], path, tokenizer.separator)
    _forget(cache, name)


def _make_each(
    cache: Cache, name: str, make: Callable[[T, Path], None], items: Sequence[T], executor: Executor
) -> Iterator[Path]:
    """Yield a folder of each item, in order, which `make` writes where there is none."""
    root, kind = cache.folder.absolute(), f"{_FOLDER}/{name}"
    atomic.refuse_link(root / _FOLDER)
    folder = atomic.open_directory(root, _FOLDER, name)
    folder.mkdir(parents=True, exist_ok=True)
    done = {path.name for path in folder.iterdir()}
    names = [f"{index:06}" for index in range(len(items))]
    entry = Cache(root).entry
    futures = {
        each: executor.submit(entry, kind, each, partial(make, item), Path)
        for each, item in zip(names, items, strict=True)
        if each not in done
    }
    for each in names:
        if each in futures:
            try:
                futures[each].result()
            except ChildProcessError as error:
                raise UserError(
                    f"Tokenizing stopped: {error}. If memory ran out, try fewer --workers. The same command goes on "
                    "with it."
                ) from error
            if folder / each not in folder.iterdir():  # a network's file system may know a single name from before
                raise UserError(
                    f"A worker has put its part of the tokens elsewhere than in {root}: keep the cache, by --cache, on "
                    "a file system that all workers share."
                )
        yield folder / each


def _forget(cache: Cache, name: str) -> None:
    atomic.refuse_link(cache.folder / _FOLDER)
    shutil.rmtree(cache.folder / _FOLDER / name, ignore_errors=True)


def _write_sizes(measure: Callable[[Shard], Sizes], shard: Shard, folder: Path) -> None:
    sizes = measure(shard)
    np.savez(folder / _SIZES, characters=sizes.characters, hashes=sizes.hashes, is_open=np.array(sizes.is_open))


def _read_sizes(folder: Path) -> Sizes:
    try:
        with np.load(folder / _SIZES, allow_pickle=False) as content:
            return Sizes(content["characters"], content["hashes"], bool(content["is_open"]))
    except Exception as error:  # numpy raises many kinds for a file of somebody else's, MemoryError among them
        raise UserError(f"{folder} can't be read ({error}): delete it to have it made anew.") from error


def _write_tokens(tokenizer: Path, item: tuple[Part, tuple[str, str]], folder: Path) -> None:
    part, names = item
    labeled = ((names[held_out], document) for held_out, document in part)
    tokenize_splits(labeled, Tokenizer.load(tokenizer), {name: folder / name for name in {*names}}, more=True)
