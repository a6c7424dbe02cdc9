"""Texts and completions as token ids."""

from itertools import groupby

from anyformer.config import SpecialTokens
from anyformer.data.examples import CompletionExample
from anyformer.data.examples.encoded import LearnedTokens
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import encode_continuation, encode_decoder_prompt


def encode_completion(
    tokenizer: Tokenizer,
    example: CompletionExample,
    *,
    learn_all: bool = False,
    special_tokens: SpecialTokens | None = None,
) -> LearnedTokens:
    """The ids of a prompt and its completion, with the end of text, which is learned.

    The prompt has the ids that `generate` gives it, and each segment those that it has behind them.

    Args:
        tokenizer: The model's.
        example: Segments of text.
        learn_all: Learn the prompt, too.
        special_tokens: The model's, for an empty prompt.

    Raises:
        UserError: a text can't be encoded, there is no token that ends a text, or none to begin one with.
    """
    try:
        return _encode(tokenizer, example, learn_all, special_tokens)
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from error


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the end of text. Raises UserError where there is none."""
    if tokenizer.eos is None:
        raise UserError(
            "the tokenizer has no end-of-text token, so a model can't learn where an answer ends: declare eos_token in "
            "its tokenizer_config.json."
        )
    return tokenizer.eos


def _encode(
    tokenizer: Tokenizer, example: CompletionExample, learn_all: bool, special_tokens: SpecialTokens | None
) -> LearnedTokens:
    eos = end_of_text(tokenizer)
    runs = groupby(example.segments, key=lambda segment: segment[1])
    segments = [("".join(text for text, _ in run), learned) for learned, run in runs]
    text, _ = segments.pop(0) if segments and not segments[0][1] else ("", False)
    ids = encode_decoder_prompt(tokenizer, text, special_tokens)
    if not ids:
        raise UserError(
            "the prompt is empty, and the model has no beginning-of-text token: give it a few words to start from."
        )
    learned, mismatches = [False] + [learn_all] * (len(ids) - 1), 0  # nothing predicts the first token
    for segment, is_learned in segments:
        # An empty prompt is a token alone, which need not be what the tokenizer puts before a text.
        whole = encode_decoder_prompt(tokenizer, text + segment, special_tokens)
        new, mismatch = encode_continuation(tokenizer, ids, whole, segment)
        ids, text, mismatches = ids + new, text + segment, mismatches + mismatch
        learned += [is_learned or learn_all] * len(new)
    if ids[-1] != eos or not learned[-1]:
        ids, learned = [*ids, eos], [*learned, True]
    return LearnedTokens(ids, learned, mismatches)
