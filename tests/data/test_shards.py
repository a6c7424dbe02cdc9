"""Work on shards goes on where it was stopped."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data.corpus import Corpus, Part
from anyformer.data.disk_cache import Cache
from anyformer.data.shards import measure_shards, tokenize_shards
from anyformer.data.token_files import tokenize_splits
from anyformer.errors import UserError
from anyformer.processes import InlineExecutor
from tests.data.test_token_files import trained

few = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENIZER = "bpe:300"


class Stopping(InlineExecutor):
    """Runs calls as other processes do, by way of pickle, up to a number of them."""

    def __init__(self, most: int = 1000) -> None:
        self.calls, self.most = 0, most

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.calls == self.most:
            raise KeyboardInterrupt
        self.calls += 1
        return super().submit(*pickle.loads(pickle.dumps((fn, *args))), **kwargs)


def _write(folder: Path, lines: list[int]) -> None:
    for index, count in enumerate(lines):
        (folder / f"{index}.txt").write_text("one two three, two and one.\n" * count)


def _corpus(folder: Path, cache: Cache, executor: InlineExecutor) -> Corpus:
    return Corpus(folder, measure=partial(measure_shards, cache, "sizes", executor))


def _tokenize(folder: Path, cache: Cache, corpus: Corpus, executor: InlineExecutor) -> list[bytes]:
    parts: list[tuple[Part, tuple[str, str]]] = [(part, ("a", "b")) for part in corpus.parts()]
    paths = {split: folder.parent / split for split in "ab"}
    tokenize_shards(cache, "tokens", executor, parts, trained(TOKENIZER), paths, progress=lambda: None)
    return [path.read_bytes() for path in paths.values()]


@few
@given(lines=st.lists(st.integers(1, 12), min_size=2, max_size=30), stops=st.lists(st.integers(1, 4), max_size=3))
def test_what_is_done_is_not_done_again(tmp_path_factory: pytest.TempPathFactory, lines: list[int], stops: list[int]):
    root = tmp_path_factory.mktemp("corpus")
    folder, cache = root / "text", Cache(root / "cache")
    folder.mkdir()
    _write(folder, lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.documents.SHARD", 200)
        corpus = Corpus(folder)
        count = len(corpus.parts())
        labeled = (("ab"[held_out], document) for held_out, document in corpus.labeled())
        whole = {split: root / f"whole-{split}" for split in "ab"}
        tokenize_splits(labeled, trained(TOKENIZER), whole)
        for work in (_corpus, partial(_tokenize, corpus=corpus)):
            done = 0
            for stop in stops:
                executor = Stopping(stop)
                if done + stop >= count:
                    break
                with pytest.raises(KeyboardInterrupt):
                    work(folder, cache, executor=executor)
                done += executor.calls
            executor = Stopping()
            result = work(folder, cache, executor=executor)
            assert executor.calls == (count - done if count > 1 or work is not _corpus else 0)
            if isinstance(result, Corpus):
                assert (result.split.characters, result.split.count) == (corpus.split.characters, corpus.split.count)
            else:
                assert result == [path.read_bytes() for path in whole.values()]
    assert not [*(root / "cache" / "shards").glob("*")]


def test_a_process_that_was_killed_and_tokens_that_are_elsewhere_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("anyformer.data.documents.SHARD", 200)
    folder = tmp_path / "text"
    folder.mkdir()
    _write(folder, [9, 9, 9])

    class Killed(InlineExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(ChildProcessError("a process ended with status -9, and without a result"))
            return future

    class Elsewhere(InlineExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(fn, tmp_path / "other", *args[1:], **kwargs)

    with pytest.raises(UserError, match=r"status -9.* If memory ran out, try fewer --workers"):
        _corpus(folder, Cache(tmp_path / "cache"), Killed())
    with pytest.raises(UserError, match=r"elsewhere than in .*: keep the cache, by --cache, on a file system that all"):
        _corpus(folder, Cache(tmp_path / "cache"), Elsewhere())


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anyformer.data.documents.SHARD", 200)
    folder = tmp_path / "text"
    for each in ("text", "cache", "other"):
        (tmp_path / each).mkdir()
    _write(folder, [9, 9, 9])
    (tmp_path / "cache" / "shards").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="is a symbolic link"):
        _corpus(folder, Cache(tmp_path / "cache"), InlineExecutor())
    assert not [*(tmp_path / "other").iterdir()]
