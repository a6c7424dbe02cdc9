"""Answers of models that write text: how likely they find the right ones, and which they give themselves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from anyformer.data.examples import ChatExample, CompletionExample, Seq2SeqExample
from anyformer.data.examples.chat import encode_chat_rows
from anyformer.data.examples.encoded import encode_completion, truncate
from anyformer.errors import UserError, quote
from anyformer.evaluation.logits import Progress, known_label, log_softmax, single_label
from anyformer.evaluation.metrics import UNIT, Metric, exact_match, language_model, ratio, share, summaries, translation
from anyformer.evaluation.result import EvaluatedRow, Evaluation, Options
from anyformer.evaluation.scorer import Continuation, log_likelihoods
from anyformer.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig
from anyformer.generation.generate import Hypothesis, generate_hypotheses
from anyformer.generation.inference import require_tokenizer
from anyformer.generation.prompt import eos_ids
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_conversation, encode_decoder_prompt, render_conversation

Answered = ChatExample | CompletionExample | Seq2SeqExample
"""Examples with an answer that a model can write."""


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The loss of the learned tokens of an example in nats, and the probability of those that end an answer; sums."""

    nats: float
    tokens: int
    end_probability: float = 0.0
    ends: int = 0


def question(example: Answered) -> str:
    """The question of an example, for people."""
    match example:
        case ChatExample():
            return "\n".join(str(message.get("content") or "") for message in example.messages[: _last(example)])
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
    """Put another answer in the place of an example's last one, to be the only one that is learned."""
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
    losses = [AnswerLoss(0.0, 0) for _ in examples]
    for (index, continuation, loss_mask), score in zip(parts, scores, strict=True):
        pairs = list(compress(zip(continuation.ids, score.logprobs, strict=True), loss_mask))
        ends = [math.exp(logprob) for token, logprob in pairs if token in stops]
        loss = losses[index]
        losses[index] = AnswerLoss(
            loss.nats - math.fsum(logprob for _, logprob in pairs),
            loss.tokens + len(pairs),
            loss.end_probability + math.fsum(ends),
            loss.ends + len(ends),
        )
    return losses


def choose(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Answered],
    choices: Sequence[str],
    *,
    progress: Progress = lambda count: None,
) -> list[list[float]]:
    """The log-probability of each choice as the last answer, with its end, [examples, choices].

    Raises UserError where an example with a choice as its answer has no room in the context.
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
) -> list[Hypothesis]:
    """Write the last answer of each example greedily, or with the beams that the model's settings ask for.

    A question that leaves no room for `max_new_tokens` in the context loses its beginning.
    """
    context = model.config.context_length
    new = max_new_tokens or DEFAULT_NEW_TOKENS
    prompts = [_prompt(model, tokenizer, example) for example in examples]
    if context is not None:
        new = min(new, context // 2)
        room = context - (0 if model.config.is_encoder_decoder else new)
        prompts = [ids[-room:] for ids in prompts]
    config = GenerationConfig.for_model(model, max_new_tokens=new)
    texts = generate_hypotheses(model, tokenizer, prompts, config, batch_size, progress)
    return [answer for (answer,) in texts]


def _last(example: ChatExample | CompletionExample) -> int:
    """Index of the last answer to be learned."""
    loss_mask = example.loss_mask if isinstance(example, ChatExample) else [each for _, each in example.segments]
    indices = [index for index, is_learned in enumerate(loss_mask) if is_learned]
    if not indices:
        raise UserError(f"{example.location}: there is no answer to compare with.")
    return indices[-1]


def _parts(
    model: Transformer, tokenizer: Tokenizer, example: Answered, *, cut: bool = True
) -> list[tuple[Continuation, Sequence[bool]]]:
    """The scored part of an example, from its first learned token to its last, and which of its tokens are learned."""
    match example:
        case Seq2SeqExample():
            target = tokenizer.encode(example.target)[: model.config.max_length]
            return [(Continuation(tokenizer.encode(example.source), target), [True] * len(target))] if target else []
        case ChatExample():
            rows = encode_chat_rows(tokenizer, example)
        case CompletionExample():
            rows = [encode_completion(tokenizer, example, special_tokens=model.config.special_tokens)]
    parts: list[tuple[Continuation, Sequence[bool]]] = []
    for row in rows:
        kept = truncate(row, model.config.max_length)[0] if cut else row
        # The first token has nothing before it.
        indices = [index for index, is_learned in enumerate(kept.loss_mask) if is_learned and index > 0]
        if indices:
            begin, end = indices[0], indices[-1] + 1
            parts.append((Continuation(kept.tokens[:begin], kept.tokens[begin:end]), kept.loss_mask[begin:end]))
    return parts


def _prompt(model: Transformer, tokenizer: Tokenizer, example: Answered) -> list[int]:
    match example:
        case ChatExample():
            text = render_conversation(tokenizer, example.messages[: _last(example)], True, example.tools)
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
    """Measure how likely right answers are, and how near the model's are to them; `translated`, as translations too."""
    tokenizer = require_tokenizer(tokenizer, "it can't be asked in words")
    references = [answer(example) for example in examples]
    shown = [question(example) for example in examples]
    losses = answer_losses(model, tokenizer, examples, progress=options.counter("losses", len(examples)))
    metrics = language_model([loss.nats for loss in losses], [loss.tokens for loss in losses])
    if options.choices:
        choices = [choice.strip() for choice in options.choices]
        right = [known_label(text.strip(), choices, each) for text, each in zip(references, examples, strict=True)]
        advance = options.counter("choices", len(examples))
        scores = np.array(choose(model, tokenizer, examples, options.choices, progress=advance))
        chosen = single_label(examples, right, choices, log_softmax(scores), shown)
        return replace(chosen, metrics={**chosen.metrics, **metrics})
    written = give_answers(
        model,
        tokenizer,
        examples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        progress=options.counter("answers", len(examples)),
    )
    texts = [each.text for each in written]
    match = exact_match(references, texts)
    notes: list[str] = []
    compared: dict[str, Metric] = {}
    for compare in [translation, summaries] if translated else [summaries] if options.rouge else []:
        try:
            compared |= compare(references, texts)
        except UserError as error:
            if not options.skip_missing:
                raise
            notes.append(f"Left out: {error}")
    metrics = {**compared, "exact_match": match, **metrics}
    if any(loss.ends for loss in losses):
        ends = ratio([loss.end_probability for loss in losses], [loss.ends for loss in losses])
        metrics["end_probability"] = replace(ends, bounds=UNIT)
    metrics["stopped"] = share([each.stopped for each in written])
    rows = [
        EvaluatedRow(example.location, prompt, reference, text, loss.nats / max(1, loss.tokens), bool(right))
        for example, prompt, reference, text, loss, right in zip(
            examples, shown, references, texts, losses, match.rows[:, 0], strict=True
        )
    ]
    return Evaluation(metrics=metrics, rows=rows, notes=notes)
