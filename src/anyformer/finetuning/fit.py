"""Which tasks a model can do, and examples in the form that it can learn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from anyformer.config import ModelConfig
from anyformer.data.examples import ChatExample, CompletionExample, EmbedExample, PreferenceExample, Seq2SeqExample
from anyformer.data.examples.loading import ExampleSet
from anyformer.errors import UserError


def fitted(found: ExampleSet, model: ModelConfig) -> ExampleSet:
    """The examples as this model learns them: prompts and completions are sources and targets of an encoder-decoder.

    Raises:
        UserError: the model can't do the task.
    """
    if found.task == "completion" and model.is_encoder_decoder:
        examples = [_rewriting(example) for example in cast("Sequence[CompletionExample]", found.examples)]
        return replace(found, task="seq2seq", examples=examples)
    if found.task == "seq2seq" and not model.is_encoder_decoder:
        raise UserError(
            "Sources and targets are for an encoder-decoder, such as T5 or BART, and this model has one stack: give a "
            "decoder prompts and completions (--task completion --columns prompt=SOURCE completion=TARGET)."
        )
    if found.task in ("chat", "completion", "preference") and not model.is_decoder_only:
        kind = "reads a source first" if model.is_encoder_decoder else "is an encoder, which writes nothing"
        raise UserError(f"The task {found.task} is for a decoder, and this model {kind}.")
    if found.task in ("chat", "completion", "preference", "seq2seq") and model.head.kind != "language_model":
        raise UserError(f"The task {found.task} is for a language model, and this model's head is {model.head.kind}.")
    return found


def with_system_message(found: ExampleSet, text: str) -> ExampleSet:
    """The examples with a system message in each conversation that had none.

    Raises:
        UserError: there is no conversation.
    """
    added = list[ChatExample]()

    def side(example: ChatExample | CompletionExample) -> ChatExample:
        if not isinstance(example, ChatExample):
            raise UserError(f"--system is for conversations, and {example.where}, is a text: leave it out.")
        if example.messages[0]["role"] == "system":
            return example
        messages = [{"role": "system", "content": text}, *example.messages]
        added.append(replace(example, messages=messages, learned=[False, *example.learned]))
        return added[-1]

    examples = list[ChatExample | PreferenceExample]()
    for example in cast("Sequence[ChatExample | PreferenceExample]", found.examples):
        pair = isinstance(example, PreferenceExample)
        examples.append(
            replace(example, chosen=side(example.chosen), rejected=side(example.rejected)) if pair else side(example)
        )
    note = f"--system added to {len(added):,} conversation{'s' * (len(added) != 1)}"
    return replace(found, examples=examples, notes=[*found.notes, note])


def embedding_loss(asked: str | None, example: EmbedExample) -> str:
    """The loss that compares the vectors of examples such as this one.

    Args:
        asked: One of `EMBEDDING_LOSSES`; None: what suits them.

    Raises:
        UserError: They lack what it compares.
    """
    count = len(example.texts)
    if example.score is not None:
        what, fitting = "pairs with a score", ("cosine",)
    elif example.label is None:
        what, fitting = f"rows of {count} texts", ("in_batch_negatives", "triplet")[: 2 if count == 3 else 1]
    elif count == 1:
        what, fitting = "texts with a class", ("class_triplet",)
    else:
        what, fitting = "pairs with a class", ("softmax",)
    if asked is not None and asked not in fitting:
        raise UserError(f"--loss {asked} is not for {what}: leave it out, or take {' or '.join(fitting)}.")
    return asked or fitting[0]


def _rewriting(example: CompletionExample) -> Seq2SeqExample:
    source = "".join(text for text, learned in example.segments if not learned)
    target = "".join(text for text, learned in example.segments if learned)
    return Seq2SeqExample(where=example.where, source=source, target=target)
