"""How a model that writes text answers examples: how likely it finds the right answers, and which it gives itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from anyformer.data.examples import ChatExample, CompletionExample, Seq2SeqExample
from anyformer.data.examples.chat import encode_chat_rows
from anyformer.data.examples.encoded import EncodedRow, encode_completion, truncate
from anyformer.errors import UserError, quote
from anyformer.evaluation.labels import known_label, log_softmax, single_label
from anyformer.evaluation.logits import Progress
from anyformer.evaluation.loglikelihood import Continuation, log_likelihoods
from anyformer.evaluation.metrics import Metric, exact_match, language_model, ratio, share, summaries, translation
from anyformer.evaluation.metrics.metric import UNIT
from anyformer.evaluation.options import Options
from anyformer.evaluation.result import EvaluatedRow, Evaluation
from anyformer.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig
from anyformer.generation.generate import generate_hypotheses
from anyformer.generation.inference import require_tokenizer
from anyformer.generation.prompt import eos_ids
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_conversation, encode_decoder_prompt, render_conversation

Answered = ChatExample | CompletionExample | Seq2SeqExample
"""Examples with an answer that a model can write."""


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """How unlikely the learned tokens of an example are.

    Attributes:
        nats: The sum of their losses.
        tokens: How many there are.
        end_probability: The sum of the probabilities of those that end an answer.
        ends: How many of those there are.
    """

    nats: float
    tokens: int
    end_probability: float = 0.0
    ends: int = 0


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer that a model wrote.

    Attributes:
        text: What it says.
        stopped: Whether the model ended it; else it was cut off.
    """

    text: str
    stopped: bool


def question(example: Answered) -> str:
    """The question of an example, for people."""
    match example:
        case ChatExample():
            before = example.messages[: _last(example)]
            return "\n".join(str(message.get("content") or "") for message in before)
        case CompletionExample():
            return "".join(text for text, _ in example.segments[: _last(example)])
        case Seq2SeqExample():
            return example.source


def answer(example: Answered) -> str:
    """The last answer to be learned."""
    match example:
        case ChatExample():
            return str(example.messages[_last(example)].get("content") or "")
        case CompletionExample():
            return example.segments[_last(example)][0]
        case Seq2SeqExample():
            return example.target


def with_answer(example: Answered, text: str) -> Answered:
    """The example up to its last answer, which is another one, the only one to be learned."""
    match example:
        case ChatExample():
            last = _last(example)
            messages = [*example.messages[:last], {"role": "assistant", "content": text}]
            return replace(example, messages=messages, loss_mask=[False] * last + [True])
        case CompletionExample():
            before = [(part, False) for part, _ in example.segments[: _last(example)]]
            return replace(example, segments=[*before, (text, True)])
        case Seq2SeqExample():
            return replace(example, target=text)


def answer_losses(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Answered],
    *,
    progress: Progress = lambda count: None,
) -> list[AnswerLoss]:
    """The loss of all tokens that are learned of each example. Rows that are too long are cut as in training."""
    parts = [(index, *part) for index, example in enumerate(examples) for part in _parts(model, tokenizer, example)]
    scores = log_likelihoods(model, [continuation for _, continuation, _ in parts], progress=progress)
    stops = {*eos_ids(model, GenerationConfig.for_model(model)), tokenizer.eos}
    found = [AnswerLoss(0.0, 0) for _ in examples]
    for (index, continuation, learned), score in zip(parts, scores, strict=True):
        places = list(compress(zip(continuation.ids, score.logprobs, strict=True), learned))
        ends = [math.exp(value) for token, value in places if token in stops]
        so_far = found[index]
        found[index] = AnswerLoss(
            so_far.nats - math.fsum(value for _, value in places),
            so_far.tokens + len(places),
            so_far.end_probability + math.fsum(ends),
            so_far.ends + len(ends),
        )
    return found


def choose(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Answered],
    choices: Sequence[str],
    *,
    progress: Progress = lambda count: None,
) -> list[list[float]]:
    """The log-probability of each choice as the last answer, with its end, [examples, choices].

    Raises:
        UserError: an example with a choice as its answer has no room in the context.
    """
    answered = [with_answer(example, choice) for example in examples for choice in choices]
    parts = [_parts(model, tokenizer, example, cut=False) for example in answered]
    for example, part in zip(answered, parts, strict=True):
        if not part:
            raise UserError(
                f"{example.location}: the choice {quote(answer(example))} has no token that could be scored."
            )
    scored = 0

    def advance(count: int) -> None:
        nonlocal scored
        before, scored = scored // len(choices), scored + count
        progress(scored // len(choices) - before)

    scores = log_likelihoods(model, [part[-1][0] for part in parts], progress=advance)
    values = [score.logprob for score in scores]
    return [values[begin : begin + len(choices)] for begin in range(0, len(values), len(choices))]


def give_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Answered],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    progress: Progress = lambda count: None,
) -> list[GivenAnswer]:
    """The last answer of each example, as the model writes it: greedily, or with the beams that its settings ask for.

    A question that leaves no room for `max_new_tokens` in the context loses its beginning.
    """
    context = model.config.context_length
    new = max_new_tokens or DEFAULT_NEW_TOKENS
    if context is not None:
        new = min(new, context // 2)
    room = None if context is None else context - (0 if model.config.is_encoder_decoder else new)
    prompts = [_prompt(model, tokenizer, example) for example in examples]
    prompts = prompts if room is None else [ids[-room:] for ids in prompts]
    texts = generate_hypotheses(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=new, progress=progress)
    return [GivenAnswer(each.text, each.stopped) for each in texts]


def _last(example: ChatExample | CompletionExample) -> int:
    """The place of the last answer to be learned."""
    learned = example.loss_mask if isinstance(example, ChatExample) else [each for _, each in example.segments]
    places = [index for index, each in enumerate(learned) if each]
    if not places:
        raise UserError(f"{example.location}: there is no answer to compare with.")
    return places[-1]


def _parts(
    model: Transformer, tokenizer: Tokenizer, example: Answered, *, cut: bool = True
) -> list[tuple[Continuation, Sequence[bool]]]:
    """The scored part of an example, from its first learned token to its last, and which of its tokens are learned."""
    if isinstance(example, Seq2SeqExample):
        target = tokenizer.encode(example.target)[: model.config.max_length]
        return [(Continuation(tokenizer.encode(example.source), target), [True] * len(target))] if target else []
    parts: list[tuple[Continuation, Sequence[bool]]] = []
    for row in _encode(model, tokenizer, example):
        kept = truncate(row, model.config.max_length)[0] if cut else row
        # The first token has nothing before it.
        places = [index for index, learned in enumerate(kept.loss_mask) if learned and index > 0]
        if places:
            begin, end = places[0], places[-1] + 1
            parts.append((Continuation(kept.tokens[:begin], kept.tokens[begin:end]), kept.loss_mask[begin:end]))
    return parts


def _encode(model: Transformer, tokenizer: Tokenizer, example: ChatExample | CompletionExample) -> list[EncodedRow]:
    if isinstance(example, ChatExample):
        return encode_chat_rows(tokenizer, example)
    return [encode_completion(tokenizer, example, special_tokens=model.config.special_tokens)]


def _prompt(model: Transformer, tokenizer: Tokenizer, example: Answered) -> list[int]:
    match example:
        case ChatExample():
            messages = example.messages[: _last(example)]
            text = render_conversation(tokenizer, messages, True, example.tools)
            return encode_conversation(tokenizer, text)
        case CompletionExample():
            return encode_decoder_prompt(tokenizer, question(example), model.config.special_tokens)
        case Seq2SeqExample():
            return tokenizer.encode(example.source)


def evaluate_answers(
    model: Transformer,
    tokenizer: Tokenizer | None,
    examples: Sequence[Answered],
    options: Options,
    *,
    translated: bool = False,
) -> Evaluation:
    """Measure how likely the right answers are, and how near to them those are that the model gives.

    Args:
        translated: Compare answers as translations are compared, too.
    """
    tokenizer = require_tokenizer(tokenizer, "it can't be asked in words")
    references = [answer(example) for example in examples]
    shown = [question(example) for example in examples]
    unlikely = answer_losses(model, tokenizer, examples, progress=options.counter("losses", len(examples)))
    metrics = language_model([each.nats for each in unlikely], [each.tokens for each in unlikely])
    if options.choices:
        choices = [choice.strip() for choice in options.choices]
        right = [known_label(text.strip(), choices, each) for text, each in zip(references, examples, strict=True)]
        advance = options.counter("choices", len(examples))
        scores = np.array(choose(model, tokenizer, examples, options.choices, progress=advance))
        chosen = single_label(examples, right, choices, log_softmax(scores), shown)
        return replace(chosen, metrics={**chosen.metrics, **metrics})
    given = give_answers(
        model,
        tokenizer,
        examples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        progress=options.counter("answers", len(examples)),
    )
    texts = [each.text for each in given]
    match = exact_match(references, texts)
    comparisons = [translation, summaries] if translated else [summaries] if options.rouge else []
    compared, notes = _compared(references, texts, comparisons, options)
    metrics = {**compared, "exact_match": match, **metrics}
    if any(each.ends for each in unlikely):
        ends = [each.end_probability for each in unlikely]
        metrics["end_probability"] = replace(ratio(ends, [each.ends for each in unlikely]), bounds=UNIT)
    metrics["stopped"] = share([each.stopped for each in given])
    rows = [
        EvaluatedRow(example.location, text, reference, said, loss.nats / max(1, loss.tokens), bool(right))
        for example, text, reference, said, loss, right in zip(
            examples, shown, references, texts, unlikely, match.rows[:, 0], strict=True
        )
    ]
    return Evaluation(metrics=metrics, rows=rows, notes=notes)


def _compared(
    references: Sequence[str],
    texts: Sequence[str],
    metrics: Sequence[Callable[[Sequence[str], Sequence[str]], dict[str, Metric]]],
    options: Options,
) -> tuple[dict[str, Metric], list[str]]:
    """Metrics of texts beside references, and what is to be said about those that are left out."""
    found: dict[str, Metric] = {}
    notes: list[str] = []
    for each in metrics:
        try:
            found |= each(references, texts)
        except UserError as error:
            if not options.skip_missing:
                raise
            notes.append(f"Left out: {error}")
    return found, notes
