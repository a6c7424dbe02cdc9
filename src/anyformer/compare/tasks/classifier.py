"""Fine-tuning a classifier: how much better is it than what was never trained on the text?

Every model gets the same head: the mean of the hidden states of the stack that reads the text (of an encoder-decoder
its encoder), and one linear layer. It sees the same examples in the same order for the same number of steps. Beside it
stand two controls:

============== ====================================================================================
random         the same model with fresh weights, fine-tuned alike: what its shape alone can learn
bag of words   logistic regression on which tokens a text has: what needs no order
============== ====================================================================================

Without labels of one's own the question is which of four held-out texts a passage is from; of a corpus whose held-out
share has no two long texts, whether the words of a passage are in order or shuffled, of which a bag of words knows
nothing.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anyformer.blocks.pooling import pool_mean
from anyformer.compare.tasks.choices import Ids, TaskResult
from anyformer.compare.tasks.items import passages, words
from anyformer.data.examples import ClassifyExample, held_out
from anyformer.errors import UserError
from anyformer.generation.inference import check_ids, check_nan, evaluating
from anyformer.generation.prompt import batches_by_length, input_pad_id, pad
from anyformer.model import Transformer, build
from anyformer.tasks.classify import TASK
from anyformer.tasks.loading import load_examples
from anyformer.tokenizer import Tokenizer
from anyformer.training.optimizer import make_optimizer, set_learning_rate
from anyformer.training.schedule import learning_rate_factor

TRAINING, TEST = 1_000, 400
"""Examples, at most."""
_FEWEST = 40
"""Examples to be tested on that say anything."""
_DOCUMENTS, _FEWEST_PASSAGES = 4, 100
"""Texts that passages are told apart by, and passages that each of them has."""
_LARGEST_SHARE = 0.3
"""Largest share of a file that is held out."""
_WARMUP, _WEIGHT_DECAY, _GRAD_CLIP = 0.1, 0.01, 1.0
_STEPS, _BATCH_SIZE, _LEARNING_RATE = 64, 32, 2e-3
_BAG_STEPS, _BAG_LEARNING_RATE = 300, 0.05
_BATCH_TOKENS = 4096

Labeled = tuple[str, int]
"""A text, and the number of its class."""


class LabeledTexts(NamedTuple):
    """Texts with the numbers of their classes, none of them in both parts; and the names of the classes."""

    training: Sequence[Labeled]
    test: Sequence[Labeled]
    labels: Sequence[str]


def read_labeled_texts(paths: Sequence[str], seed: int = 0) -> LabeledTexts:
    """Read files of examples as `anyformer finetune --task classify` does, and hold some of them out.

    Raises:
        UserError: A file can't be read, a row is faulty, all labels are the same, or texts have several labels or
            numbers to be predicted.
    """
    loaded = load_examples(paths, task=TASK.name, training=True)
    if loaded.kind != "single" or loaded.labels is None:
        what = "numbers to be predicted" if loaded.kind == "regression" else "several labels a text"
        raise UserError(f"{paths[0]} has {what}, and a comparison takes texts with one label each.")
    examples = cast("Sequence[ClassifyExample]", loaded.examples)
    numbers = {name: number for number, name in enumerate(loaded.labels)}

    def labeled(example: ClassifyExample) -> Labeled:
        text = example.text if example.second is None else f"{example.text}\n{example.second}"
        return text, numbers[str(example.label)]

    parts = held_out(examples, min(_LARGEST_SHARE, TEST / len(examples)), seed)
    training, test = ([labeled(cast("ClassifyExample", example)) for example in part] for part in parts)
    return LabeledTexts(training, test, loaded.labels)


def by_document(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, seed: int) -> LabeledTexts | None:
    """Passages of the four longest texts, as many of each: which text are they from? None without two long ones."""
    count = (TRAINING + TEST) // _DOCUMENTS
    longest = sorted(texts, key=len, reverse=True)[:_DOCUMENTS]
    drawn = [passages([text], tokenizer, count=count, max_tokens=max_tokens, seed=seed) for text in longest]
    drawn = [each for each in drawn if len(each) >= _FEWEST_PASSAGES]
    if len(drawn) < 2:
        return None
    size = min(map(len, drawn))
    cut = size * TRAINING // (TRAINING + TEST)
    training = [(text, label) for label, each in enumerate(drawn) for text in each[:cut]]
    trained = {text for text, _ in training}
    test = [(text, label) for label, each in enumerate(drawn) for text in each[cut:size] if text not in trained]
    return LabeledTexts(training, test, [f"text {number}" for number in range(1, len(drawn) + 1)])


def by_order(training: Sequence[str], test: Sequence[str], seed: int) -> LabeledTexts:
    """Passages of which every second one is shuffled: are their words in order?"""
    rng = np.random.default_rng(seed)
    first, second = (
        [(_shuffled(text, rng) if number % 2 else text, number % 2) for number, text in enumerate(texts)]
        for texts in (training, test)
    )
    return LabeledTexts(first, second, ("in order", "shuffled"))


def _shuffled(passage: str, rng: np.random.Generator) -> str:
    """A passage whose words, but for the first and the last, are in another order; what is between them stays."""
    inside = words(passage)
    order = (1 + rng.permutation(max(0, len(inside) - 2))).tolist()
    parts, end = list[str](), 0
    for word, other in zip(inside[1:-1], order, strict=True):
        parts += [passage[end : word.begin], inside[other].text]
        end = word.end
    return "".join([*parts, passage[end:]])


class Example(NamedTuple):
    """The tokens of a text, and the number of its class."""

    ids: Ids
    label: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The classification of texts by a fine-tuned model.

    Attributes:
        bag_of_words: The scores of the items by that control.
        seed: Of fresh weights, and of the order of the examples.
        reason: Why it is left out; None: it isn't.
    """

    name: ClassVar[str] = "classifier"
    training: Sequence[Example]
    test: Sequence[Example]
    labels: Sequence[str]
    bag_of_words: Sequence[float]
    seed: int
    reason: str | None = None

    @classmethod
    def make(cls, texts: LabeledTexts, tokenizer: Tokenizer, max_tokens: int, seed: int) -> Classification:
        """Draw a thousand texts to train on and 400 to be tested on; long ones are cut."""
        rng = np.random.default_rng(seed)
        training, test = (
            _encode(part, tokenizer, max_tokens, rng)[:most]
            for part, most in ((texts.training, TRAINING), (texts.test, TEST))
        )
        count = min(len(training), len(test))
        if count < _FEWEST or len({example.label for example in training}) < 2:
            reason = f"There are too few texts for a classifier: {count} to train or to test on, of {_FEWEST}."
            return cls((), (), texts.labels, (), seed, reason)
        bag = _bag_of_words(training, test, len(texts.labels), tokenizer.vocab_size, seed)
        return cls(training, test, texts.labels, bag, seed)

    def run(self, model: Transformer, tokenizer: Tokenizer) -> TaskResult:
        """Fine-tune a copy of a model and one with fresh weights, and score them. Raises UserError for NaN."""
        scores, controls = tuple[float, ...](), dict[str, tuple[float, ...]]()
        if self.reason is None:
            with seeded(self.seed):
                fresh = build(model.config).to(model.device)
            pad_id = input_pad_id(model, tokenizer)
            scores = self._fine_tuned(copy.deepcopy(model), pad_id)
            controls = {"random": self._fine_tuned(fresh, pad_id), "bag of words": tuple(self.bag_of_words)}
        counts = Counter(example.label for example in self.test)
        # A guess that knows the most frequent class.
        chance = max(counts.values()) / len(self.test) if self.test else 1 / max(1, len(self.labels))
        return TaskResult(name=self.name, chance=chance, items=scores, controls=controls, reason=self.reason)

    def _fine_tuned(self, model: Transformer, pad_id: int) -> tuple[float, ...]:
        labels = torch.tensor([example.label for example in self.training], device=model.device)
        rng, passes = np.random.default_rng(self.seed), -(-_STEPS * _BATCH_SIZE // len(self.training))
        order = np.concatenate([rng.permutation(len(self.training)) for _ in range(passes)])

        def loss(step: int) -> Tensor:
            rows = order[step * _BATCH_SIZE : (step + 1) * _BATCH_SIZE].tolist()
            return F.cross_entropy(classifier(*_pad([self.training[row] for row in rows], pad_id, model)), labels[rows])

        with seeded(self.seed):
            classifier = _Classifier(model, len(self.labels))
            fit(classifier, loss, _STEPS, _LEARNING_RATE)
        scores = [0.0] * len(self.test)
        with evaluating(model), torch.inference_mode():
            for rows in batches_by_length([len(example.ids) for example in self.test], _BATCH_TOKENS):
                logits = check_nan(classifier(*_pad([self.test[row] for row in rows], pad_id, model)))
                for row, label in zip(rows, logits.argmax(dim=-1).tolist(), strict=True):
                    scores[row] = float(label == self.test[row].label)
        return tuple(scores)


class _Classifier(nn.Module):
    """The mean hidden state of the stack that reads a text, and one linear layer."""

    def __init__(self, model: Transformer, labels: int) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        self.head = nn.Linear(model.config.d_model, labels, device=model.device, dtype=model.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # What doesn't read the text has no gradient, and decay would still change it.
        if model.encoder is not None and model.decoder is not None:
            model.decoder.requires_grad_(False)

    def forward(
        self, tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch labels"]:
        hidden = self.model.encode_text(tokens, None if bool(mask.all()) else mask)
        return self.head(pool_mean(hidden, mask)).float()


def _pad(examples: Sequence[Example], pad_id: int, model: Transformer) -> tuple[Tensor, Tensor]:
    ids, mask = pad([example.ids for example in examples], pad_id, model.device)
    check_ids(ids, model.config.vocab_size)
    return ids, mask


def _encode(texts: Sequence[Labeled], tokenizer: Tokenizer, max_tokens: int, rng: np.random.Generator) -> list[Example]:
    """The first tokens of texts, in random order; without those that have none."""
    rows = tokenizer.encode_batch([text for text, _ in texts], special=False)
    examples = [Example(tuple(ids[:max_tokens]), label) for ids, (_, label) in zip(rows, texts, strict=True) if ids]
    return [examples[index] for index in rng.permutation(len(examples))]


def _bag_of_words(
    training: Sequence[Example], test: Sequence[Example], labels: int, vocab_size: int, seed: int
) -> list[float]:
    """Logistic regression on which tokens a text has (Wang & Manning 2012, section 2: binarized counts)."""

    def vectors(examples: Sequence[Example]) -> Tensor:
        bags = torch.zeros(len(examples), vocab_size)
        for bag, example in zip(bags, examples, strict=True):
            bag[list(set(example.ids))] = 1.0
        return F.normalize(bags)

    inputs, targets = vectors(training), torch.tensor([example.label for example in training])
    with seeded(seed):
        model = nn.Linear(vocab_size, labels)
        nn.init.zeros_(model.weight)
        fit(model, lambda step: F.cross_entropy(model(inputs), targets), _BAG_STEPS, _BAG_LEARNING_RATE)
    guesses = model(vectors(test)).argmax(dim=-1).tolist()
    return [float(guess == example.label) for guess, example in zip(guesses, test, strict=True)]


def fit(module: nn.Module, loss: Callable[[int], Tensor], steps: int, learning_rate: float) -> None:
    """Minimize a loss of each step by AdamW, whose rate rises over a tenth of the steps and falls linearly to 0."""
    optimizer = make_optimizer("adamw", module, learning_rate, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.999))
    module.train()
    for step in range(steps):
        factor = learning_rate_factor("linear", (step + 1) / (steps + 1), warmup=_WARMUP)
        set_learning_rate(optimizer, learning_rate * factor)
        loss(step).backward()
        nn.utils.clip_grad_norm_(module.parameters(), _GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
    module.eval()


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Draw the same numbers each time, and leave torch's generators as they were."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
