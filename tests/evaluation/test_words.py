"""Texts as words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.evaluation.words import word_spans

HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"
"""Ends with a combining mark, which is no punctuation."""


def _words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna lives in Rome.", "Anna lives in Rome ."),
        ('He said: "Fine!!" (twice)...', 'He said : " Fine !! " ( twice ) ...'),
        ("Germany's co-op, the O'Neils\u2019s", "Germany 's co-op , the O'Neils \u2019s"),
        ("Germany 's U.S. envoy, J. Smith, e.g. in the U.S.", "Germany 's U.S. envoy , J. Smith , e.g. in the U.S."),
        ('"U.S." 3.5% of $1,000.', '" U.S. " 3.5 % of $1,000 .'),
        ("@anna #rome @ # don't", "@anna #rome @ # don't"),
        ("'tis 'quoted' ''s", "' tis ' quoted ' ' 's"),
        (f"{HINDI}\u0964 \u4f60\u597d\u3002", f"{HINDI} \u0964 \u4f60\u597d \u3002"),
        ("...", "..."),
        (" \n", ""),
    ],
)
def test_punctuation_is_split_off(text: str, words: str) -> None:
    assert _words(text) == words.split()


@given(st.text(alphabet="aU's\u2019.@#\"(- \t\u00e9"))
def test_words_are_the_text_without_space(text: str) -> None:
    spans = word_spans(text)
    assert "".join(_words(text)) == "".join(text.split())
    assert all(start < end for start, end in spans)
    assert [span for word in spans for span in word] == sorted(span for word in spans for span in word)


@given(st.lists(st.sampled_from(["Anna", "U.S.", "'s", "co-op", "...", "@anna", ",", "3.5"])))
def test_words_that_are_split_already_stay_as_they_are(words: list[str]) -> None:
    assert _words(" ".join(words)) == words
