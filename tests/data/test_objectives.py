from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.config import SpecialTokens
from anyformer.data.batch import IGNORED, Batch
from anyformer.data.masked import WordBoundaries
from anyformer.data.objectives import (
    OBJECTIVES,
    Causal,
    Masked,
    SpanCorruption,
    decoder_start,
    objective,
)
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

quick = settings(max_examples=60)
CORPUS = ["The quick brown fox, jumping over unbelievable dogs.\n\nAnd über-Größe 2024 (日本語) isn't it? 🙂🙃\n"] * 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox"], "char", special="masked")


def test_causal_targets_are_the_next_tokens():
    windows = np.arange(12).reshape(2, 6)
    loss_mask = np.ones_like(windows, dtype=bool)
    loss_mask[1, 4:] = False
    batch = Causal()(windows, loss_mask, None, np.random.default_rng(0))
    assert batch.tokens.tolist() == windows[:, :-1].tolist()
    assert batch.targets.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, IGNORED, IGNORED]]
    assert batch.predicted == 8
    assert batch.mask is None
    assert batch.documents is None


def test_a_separator_ends_a_document_as_target_and_begins_the_next_as_input():
    windows = np.array([[5, 6, 0, 7, 0, 0, 8], [0, 5, 6, 7, 8, 9, 0]])
    loss_mask = np.ones_like(windows, dtype=bool)
    batch = Causal(reset=True, separator=0)(windows, loss_mask, None, np.random.default_rng(0))
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 1, 1, 2, 3], [1, 1, 1, 1, 1, 1]]
    assert (batch.targets == windows[:, 1:]).all(), "nothing that would be predicted is lost"
    stream_start = np.zeros_like(loss_mask)
    stream_start[1, 3] = True
    batch = Causal(reset=True, separator=0)(windows, loss_mask, None, np.random.default_rng(0), stream_start)
    assert batch.documents is not None
    assert batch.documents[1].tolist() == [1, 1, 1, 2, 2, 2]


@quick
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    before=st.sampled_from([None, 1]),
    after=st.sampled_from([None, 2]),
)
def test_masked(rows: int, length: int, seed: int, before: int | None, after: int | None):
    make = Masked(0, np.arange(3, 50), np.arange(3), before, after)
    draw = np.random.default_rng(seed)
    windows = draw.integers(0, 50, (rows, length))
    loss_mask = draw.random((rows, length)) < 0.9
    batch = make(windows, loss_mask, None, np.random.default_rng(seed))
    again = make(windows, loss_mask, None, np.random.default_rng(seed))
    assert (batch.tokens == again.tokens).all()
    assert (batch.targets == again.targets).all()
    context = make.stride(100)
    assert batch.tokens.shape == batch.targets.shape == (rows, length + 100 - context)
    inner = slice(int(before is not None), batch.tokens.shape[1] - int(after is not None))
    tokens, targets = batch.tokens[:, inner], batch.targets[:, inner]
    if before is not None:
        assert (batch.tokens[:, 0] == before).all()
        assert (batch.targets[:, 0] == IGNORED).all()
    if after is not None:
        assert (batch.tokens[:, -1] == after).all()
        assert (batch.targets[:, -1] == IGNORED).all()
    chosen = targets != IGNORED
    assert (targets[chosen] == windows[chosen]).all()
    assert (tokens[~chosen] == windows[~chosen]).all()
    assert not (chosen & ~(loss_mask & (windows >= 3))).any()
    candidates = (loss_mask & (windows >= 3)).sum(axis=1)
    expected = [max(1, round(0.15 * c)) if c else 0 for c in candidates.tolist()]
    assert chosen.sum(axis=1).tolist() == expected
    assert ((tokens == 0) | (tokens >= 3))[chosen].all()


@pytest.mark.parametrize("whole", [False, True])
def test_masked_shares_are_those_of_bert(whole: bool):
    goes_on = np.arange(30_000) % 3 > 0
    make = Masked(0, np.arange(3, 30_000), np.arange(3), words=WordBoundaries(goes_on, goes_on >= 0) if whole else None)
    windows = np.random.default_rng(1).integers(3, 30_000, (200, 1000))
    batch = make(windows, np.ones_like(windows, dtype=bool), None, np.random.default_rng(2))
    chosen = batch.targets != IGNORED
    assert chosen.mean() == pytest.approx(0.15, abs=1e-4)
    hidden = (batch.tokens == 0)[chosen].mean()
    kept = (batch.tokens == windows)[chosen].mean()
    assert hidden == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1, abs=0.01)
    assert np.ptp(chosen.mean(axis=0)) < 0.2


@quick
@given(rows=st.integers(1, 4), length=st.integers(1, 60), seed=st.integers(0, 2**32), long=st.floats(0, 1))
def test_whole_words_are_hidden_or_none_of_them(rows: int, length: int, seed: int, long: float):
    draw = np.random.default_rng(seed)
    left, right = draw.random((2, 50)) < long
    left[:3] = right[:3] = False
    make = Masked(0, np.arange(3, 50), np.arange(3), words=WordBoundaries(left, right))
    windows = draw.integers(0, 50, (rows, length))
    batch = make(windows, np.ones_like(windows, dtype=bool), None, np.random.default_rng(seed))
    again = make(windows, np.ones_like(windows, dtype=bool), None, np.random.default_rng(seed))
    assert (batch.tokens == again.tokens).all()
    for row, targets in zip(windows.tolist(), batch.targets.tolist(), strict=True):
        words: list[list[int]] = []
        for index, token in enumerate(row):
            if not index or not (left[token] and right[row[index - 1]]):
                words.append([])
            words[-1].append(index)
        texts = [word for word in words if row[word[0]] >= 3]
        assert all(len(word) == 1 for word in words if row[word[0]] < 3)
        hidden = [word for word in texts if targets[word[0]] != IGNORED]
        assert sorted(i for word in hidden for i in word) == [i for i, t in enumerate(targets) if t != IGNORED]
        wanted = max(1, round(0.15 * sum(map(len, texts))))
        sizes = sorted(map(len, texts))
        if texts and sizes[0] > wanted:
            assert [len(word) for word in hidden] == [sizes[0]]
        else:
            left_over = wanted - sum(map(len, hidden))
            assert left_over >= 0
            assert all(len(word) > left_over for word in texts if word not in hidden)


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text cut where the tables say that a word begins."""
    ids = np.array([tokenizer.encode(text, special=False)])
    first = WordBoundaries.of_tokenizer(tokenizer).first(ids)[0]
    edges = [*np.flatnonzero(first).tolist(), ids.shape[1]]
    pieces = [tokenizer.decode(ids[0, a:b].tolist()) for a, b in pairwise(edges)]
    return [word for piece in pieces if (word := piece.strip())]


@pytest.mark.parametrize("spec", ["char", "bpe:280", "bpe:400", "wordpiece:120", "unigram:100"])
def test_words_are_told_by_every_kind_of_tokenizer(spec: str):
    tokenizer = Tokenizer.train(CORPUS, spec, special="masked")
    words = words_of(tokenizer, "The unbelievable fox,\njumping over-Größe 2024 (日本語)")
    assert words[:5] == ["The", "unbelievable", "fox", ",", "jumping"]
    assert words[5] == "over"
    # the words that byte-level BPE is trained within begin with a sign that stands before their letters
    assert words[6:8] == (["-Größe", "2024"] if spec.startswith("bpe") else ["-", "Größe"])
    assert "(" in words
    assert "2024" in words
    assert ("日本語" in words) == (spec != "wordpiece:120"), "BERT takes each Chinese character for a word"


def test_bytes_of_a_character_stay_together():
    tokenizer = Tokenizer.train(["abc"], "bpe:261", special="masked")
    assert len(tokenizer.encode("🙂", special=False)) == 4
    assert words_of(tokenizer, "a 🙂 b") == ["a", "🙂", "b"]


def test_padding_is_masked():
    make = Masked(0, np.arange(3, 50), np.arange(3), 1, 2)
    padding_mask = np.array([[True, True, False]])
    batch = make(np.array([[5, 6, 0]]), padding_mask, padding_mask, np.random.default_rng(0))
    assert batch.mask is not None
    assert batch.mask.tolist() == [[True, True, True, False, True]]


def spans(share: float = 0.15, span: float = 3.0) -> SpanCorruption:
    return SpanCorruption(tuple(range(199, 99, -1)), eos=1, start=2, pad=0, noise_density=share, mean_span_length=span)


def restored(source: list[int], targets: list[int]) -> list[int]:
    """The window that source and targets were made of: every sentinel replaced by what follows it in the targets."""
    assert source[-1] == targets[-1] == 1
    text: dict[int, list[int]] = {}
    last = 0
    for token in targets[:-1]:
        if token >= 100:
            last = token
            assert token not in text
            text[token] = []
        else:
            text[last].append(token)
    assert sorted(text, reverse=True) == list(text), "sentinels descend"
    assert [token for token in source if token >= 100] == list(text)
    return [t for token in source[:-1] for t in (text[token] if token >= 100 else [token])]


@quick
@given(
    context=st.integers(4, 200),
    rows=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    share=st.floats(0.05, 0.6),
    span=st.floats(1, 6),
)
def test_span_corruption_keeps_everything(context: int, rows: int, seed: int, share: float, span: float):
    make = spans(share, span)
    length = make.stride(context)
    draw = np.random.default_rng(seed)
    windows = draw.integers(3, 100, (rows, length))
    loss_mask = np.ones_like(windows, dtype=bool)
    batch = make(windows, loss_mask, None, np.random.default_rng(seed))
    again = make(windows, loss_mask, None, np.random.default_rng(seed))
    assert batch.source is not None
    assert again.source is not None
    assert (batch.source == again.source).all()
    assert (batch.targets == again.targets).all()
    assert batch.source_mask is None
    assert batch.mask is None
    assert (batch.source.shape[1], batch.targets.shape[1]) == make.lengths(length)
    assert max(make.lengths(length)) <= context < max(make.lengths(length + 1))
    for window, source, targets in zip(windows.tolist(), batch.source.tolist(), batch.targets.tolist(), strict=True):
        assert restored(source, targets) == window
    assert (batch.tokens[:, 0] == 2).all()
    assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()


def test_span_corruption_has_the_lengths_of_t5():
    # as compute_input_and_target_lengths prints them for the paper's setting
    assert spans().stride(512) == 568
    assert spans().lengths(568) == (512, 114)
    with pytest.raises(UserError, match=r"needs 114 sentinel tokens.*has 100"):
        spans().stride(2048)


@quick
@given(length=st.integers(2, 80), seed=st.integers(0, 2**32), data=st.data())
def test_span_corruption_of_short_and_partly_owned_windows(length: int, seed: int, data: st.DataObject):
    make = spans()
    size = data.draw(st.integers(1, length))
    first = data.draw(st.integers(0, size))
    windows = np.random.default_rng(seed).integers(3, 100, (2, length))
    padding_mask = np.ones_like(windows, dtype=bool)
    padding_mask[1, size:] = False
    loss_mask = padding_mask.copy()
    loss_mask[1, :first] = False
    batch = make(windows, loss_mask, padding_mask, np.random.default_rng(seed))
    assert batch.source is not None
    assert (batch.source.shape[1], batch.targets.shape[1]) == make.lengths(length)
    mask = np.ones_like(batch.source, dtype=bool) if batch.source_mask is None else batch.source_mask
    assert mask.sum(axis=1).tolist() == [make.lengths(length)[0], make.lengths(size)[0]]
    assert (batch.source[~mask] == 0).all()
    written = make.lengths(size)[1]
    read = [*batch.tokens[1, 1:written].tolist(), 1]
    assert restored(batch.source[1][mask[1]].tolist(), read) == windows[1, :size].tolist()
    targets = batch.targets[1]
    assert (targets[written:] == IGNORED).all()
    assert (batch.tokens[1, written:] == 0).all()
    counted = targets[:written] != IGNORED
    assert (targets[:written][counted] == np.array(read)[counted]).all()
    hidden = [t for t in read if 3 <= t < 100]
    assert 0 <= (counted & (targets[:written] < 100) & (targets[:written] > 1)).sum() <= min(len(hidden), size - first)
    assert counted[-1] == (first < size)


def test_spans_are_anywhere_and_of_many_lengths():
    make = spans()
    windows = np.tile(np.arange(3, 100), (2000, 1))
    batch = make(windows, np.ones_like(windows, dtype=bool), None, np.random.default_rng(0))
    seen = np.bincount(batch.targets[(batch.targets < 100) & (batch.targets > 1)], minlength=100)[3:] / 2000
    assert seen[0] == 0, "a window begins with text, as T5's does"
    assert seen[20:-20].mean() == pytest.approx(0.15, abs=0.02)
    assert np.ptp(seen[20:-20]) < 0.06
    firsts = batch.targets[:, 1:][(batch.targets[:, :-1] >= 100)]
    assert len(set(firsts.tolist())) > 80


def test_objectives_by_name(tokenizer: Tokenizer):
    assert objective("causal", tokenizer) == Causal()
    made = objective("masked", tokenizer)
    assert isinstance(made, Masked)
    assert (made.mask_id, made.before, made.after) == (tokenizer.mask, tokenizer.cls, tokenizer.sep)
    assert set(made.ordinary.tolist()) == set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    assert made.words is None
    made = objective("masked", tokenizer, whole_word_masking=True)
    assert isinstance(made, Masked)
    assert made.words is not None
    assert not made.words.left[sorted(tokenizer.special_ids)].any()
    assert objective("causal", tokenizer, document_masking=True) == Causal(reset=True, separator=tokenizer.sep)
    assert set(OBJECTIVES) == {"causal", "masked", "span_corruption"}
    with pytest.raises(UserError, match="did you mean 'masked'"):
        objective("maskd", tokenizer)
    with pytest.raises(UserError, match="mask token"):
        objective("masked", Tokenizer.train(["abc"], "char"))
    with pytest.raises(UserError, match="between documents"):
        objective("causal", Tokenizer.train(["abc"], "char"), document_masking=True)
    with pytest.raises(UserError, match="sentinels"):
        objective("span_corruption", tokenizer)


T5 = SpecialTokens(eos=(1,), pad=0, decoder_start=0)
BART = SpecialTokens(bos=0, eos=(2,), pad=1, decoder_start=2)


@pytest.mark.parametrize(("spec", "sentinels"), [("char", 100), ("bpe:400", 40), ("unigram:200", 20)])
def test_span_corruption_of_a_trained_tokenizer(spec: str, sentinels: int):
    tokenizer = Tokenizer.train(CORPUS, spec, special="span_corruption")
    made = objective("span_corruption", tokenizer, tokens=T5)
    assert isinstance(made, SpanCorruption)
    assert made.sentinels == tuple(tokenizer.vocab_size - 1 - index for index in range(sentinels))
    assert (made.eos, made.pad, made.start) == (1, 0, 0)
    assert [tokenizer.token(id_) for id_ in made.sentinels[:2]] == ["<extra_id_0>", "<extra_id_1>"]
    assert set(made.sentinels) < tokenizer.special_ids
    made = objective("span_corruption", tokenizer, tokens=BART)
    assert isinstance(made, SpanCorruption)
    assert made.start == tokenizer.eos


def test_a_decoder_starts_with_the_token_of_the_same_role():
    tokenizer = Tokenizer.train(CORPUS, "char", special="seq2seq")
    assert decoder_start(T5, tokenizer) == tokenizer.pad == 0
    assert decoder_start(BART, tokenizer) == tokenizer.eos == 1
    assert decoder_start(SpecialTokens(), tokenizer) == tokenizer.pad
    ends = Tokenizer.train(["ab", "c"], "char")
    assert decoder_start(T5, ends) == ends.eos
    with pytest.raises(UserError, match="for its decoder to start"):
        decoder_start(T5, Tokenizer.train(["abc"], "char"))


def test_a_batch_counts_its_targets():
    assert Batch(np.zeros((1, 3), dtype=np.int64), np.array([[1, IGNORED, 0]])).predicted == 2


@quick
@given(rows=st.integers(1, 9), parts=st.integers(1, 12))
def test_the_parts_of_a_batch_are_its_rows(rows: int, parts: int):
    tokens = np.arange(3 * rows).reshape(rows, 3)
    batch = Batch(tokens, tokens + 1, source=tokens[:, :2], documents=tokens)
    split = batch.split(parts)
    assert len(split) == min(rows, parts)
    sizes = [len(part.tokens) for part in split]
    assert max(sizes) - min(sizes) <= 1
    for name in ("tokens", "targets", "source", "documents"):
        assert (np.concatenate([getattr(part, name) for part in split]) == getattr(batch, name)).all()
    assert all(part.mask is None and part.segments is None and part.source_mask is None for part in split)
    assert sum(part.predicted for part in split) == batch.predicted
