"""Cloze: candidates that neither their length nor their frequency tells apart."""

from hypothesis import given, settings

from anyformer.compare.tasks.choices import ChoiceTask, differences
from anyformer.compare.tasks.cloze import RATIO, make_cloze
from anyformer.compare.tasks.words import WordStatistics, passages, words
from anyformer.tokenizer import Tokenizer
from tests.compare.tasks.corpora import untrained
from tests.compare.tasks.drawn import Corpus, corpora, language


def _make(train: list[str], held_out: list[str], tokenizer: Tokenizer) -> ChoiceTask:
    found = passages(held_out, tokenizer, count=200, max_tokens=32, seed=0, unlike=train)
    return make_cloze(found, WordStatistics.of(train, held_out), tokenizer, seed=0)


@settings(max_examples=10)
@given(corpora())
def test_candidates_are_alike(corpus: Corpus) -> None:
    train, held_out, tokenizer = corpus.texts()
    task = _make(train, held_out, tokenizer)
    assert task == _make(train, held_out, tokenizer)
    assert task.reason is None
    statistics = WordStatistics.of(train, held_out)
    for _, texts, choices in task.items:
        inside = [words(text) for text in texts]
        (index,) = (n for n, others in enumerate(zip(*inside, strict=True)) if len({word.text for word in others}) > 1)
        candidates = [each[index].text for each in inside]
        before, after = texts[0][: inside[0][index].begin], texts[0][inside[0][index].end :]
        assert texts == tuple(before + word + after for word in candidates)
        assert before + candidates[0] + after in held_out[0]
        assert before + candidates[0] + after not in train[0]
        assert len(set(candidates)) == len(candidates) == len(choices) == 4
        counts = [statistics.counts[word] for word in candidates]
        assert max(counts) <= RATIO * min(counts)
        ((span,),) = {choice.spans for choice in choices}
        for word, choice in zip(candidates, choices, strict=True):
            assert choice.ids == tuple(tokenizer.encode(before + word + after, special=False))
            # What is not the word is the same for all, and there is something of it on both sides.
            assert choice.ids[: span[0]] == choices[0].ids[: span[0]] != ()
            assert choice.ids[span[1] :] == choices[0].ids[span[1] :] != ()
        different = differences([choice.ids for choice in choices])
        assert span[0] <= different[0][0] < different[-1][1] <= span[1]
        left, right = words(before)[-1], words(after)[0]
        gaps = before[left.end :], after[: right.begin]
        for word in candidates[1:]:
            assert not (statistics.has(left.text, gaps[0], word) and statistics.has(word, gaps[1], right.text))


def test_a_short_text_has_no_task_and_says_why() -> None:
    text = language(0, 200)
    task = _make([text], ["a few words only, and no more than that"], Tokenizer.train([text], "bpe:400"))
    assert task.reason == "The held-out text is too short for a cloze test: it gives 0 of 24."
    candidate = untrained("gpt2")
    result = task.run(candidate.model, candidate.tokenizer)
    assert (result.items, result.reason, result.chance) == ((), task.reason, 0.25)
