"""Words, and which of them a corpus knows side by side."""

from anyformer.compare.tasks.words import WordStatistics, words

TEXT = "def f(x):\n    return self.x  # naïve größe, 東京へ"


def test_words_are_where_they_are() -> None:
    assert [word.text for word in words(TEXT)] == ["def", "f", "x", "return", "self", "x", "naïve", "größe", "東京へ"]
    assert all(TEXT[word.begin : word.end] == word.text for word in words(TEXT))


def test_counts_are_of_the_training_text_and_neighbors_of_both() -> None:
    known = WordStatistics.of(["a b a b", "c"], ["b.d   e    f"])
    assert (known.counts, known.total) == ({"a": 2, "b": 2, "c": 1}, 5)
    assert known.knows("a", " ", "b")
    assert known.knows("b", " ", "a")
    assert known.knows("b", ".", "d")
    assert known.knows("d", "   ", "e")
    assert not known.knows("b", " ", "d")
    assert not known.knows("e", "    ", "f")  # too far from one another
    assert not known.knows("b", " ", "c")  # texts apart
    assert known.expected("a", "b") == 2 * 2 / 5


def test_only_the_beginning_of_a_large_corpus_is_counted(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("anyformer.compare.tasks.words._CHARACTERS", 6)
    assert WordStatistics.of(["a b ", "c d e"], ["f g h i"]).counts == {"a": 1, "b": 1, "c": 1}
