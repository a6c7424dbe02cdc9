"""Which tasks a model can do, and examples in the form that it can learn."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from anyformer.config import ModelConfig
from anyformer.data.examples import CompletionExample, Seq2SeqExample
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


def _rewriting(example: CompletionExample) -> Seq2SeqExample:
    source = "".join(text for text, learned in example.segments if not learned)
    target = "".join(text for text, learned in example.segments if learned)
    return Seq2SeqExample(where=example.where, source=source, target=target)
