"""Parts of pipelines of the library `tokenizers`, and its errors as UserError."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from anyformer.errors import UserError
from anyformer.terminal import shorten

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of words before byte-level BPE: the published one of Qwen2, which is that of OpenAI's cl100k_base with
single digits. Unlike GPT-2's it keeps indentation together, which suits code."""


_REASON = 300


@contextmanager
def translated(complaint: str) -> Generator[None]:
    """Turn whatever a library raises into a UserError: ``{complaint}: {its message}``.

    That is bare Exceptions, and panics of Rust, which are no Exceptions (for example where a regular expression of a
    tokenizer.json takes too many steps).
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # pyo3 has no name under which its PanicException can be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = shorten(" ".join(str(error).split()), _REASON).rstrip(".")
        raise UserError(f"{complaint}: {reason or type(error).__name__}.") from error


def add(backend: tokenizers.Tokenizer, tokens: Iterable[AddedToken]) -> None:
    """Add tokens to a backend in order, each as the kind that it says it is."""
    # In one call, as each makes the automaton that finds them in a text anew.
    cast("Any", backend).add_tokens(list(tokens))  # the library's own types leave the element out


def surround(
    backend: tokenizers.Tokenizer,
    before: str | None,
    after: str | None,
    *,
    second_segment: int = 0,
    before_second: bool = True,
) -> None:
    """Let a tokenizer put special tokens around a text, and around each of a pair of texts.

    Args:
        before, after: the tokens around a text, which are in the vocabulary; None for none.
        second_segment: the segment id of the second text of a pair, and of the tokens around it.
        before_second: whether `before` is put before the second text, too.
    """
    tokens = {token: backend.token_to_id(token) for token in (before, after) if token is not None}
    if tokens:
        first = [part for part in (before, "$A", after) if part]
        second = [part for part in (before if before_second else None, "$B", after) if part]
        backend.post_processor = processors.TemplateProcessing(
            single=first,
            pair=[*first, *(f"{part}:{second_segment}" if second_segment else part for part in second)],
            special_tokens=cast("Any", list(tokens.items())),
        )


def surround_sentences(backend: tokenizers.Tokenizer, cls: str, sep: str) -> None:
    """Make it `[CLS] a [SEP]`, and `[CLS] a [SEP] b [SEP]` with segment 1 for the second text."""
    surround(backend, cls, sep, second_segment=1, before_second=False)


def word_piece(
    vocabulary: dict[str, int], config: Mapping[str, Any], unk: str, cls: str, sep: str
) -> tokenizers.Tokenizer:
    """BERT's tokenizer (Devlin et al. 2018): clean as the config asks, split on space and punctuation, WordPiece."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=100))
    backend.normalizer = bert_normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    surround_sentences(backend, cls, sep)
    return backend


def byte_words(*patterns: str, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    """Split text by one pattern after the other, else by WORD_PATTERN, and write each byte as a printable character."""
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated", invert=False) for p in patterns or (WORD_PATTERN,)]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)]
    )


def bert_normalizer(config: Mapping[str, Any]) -> normalizers.BertNormalizer:
    """BERT's text cleaning, as the config asks: lower case unless it says otherwise."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )


def closed_alphabet(backend: tokenizers.Tokenizer) -> frozenset[str] | None:
    """The characters of a character-level model without an unknown token: BPE drops all others silently."""
    model = backend.model
    if not isinstance(model, models.BPE) or model.unk_token is not None or model.byte_fallback:
        return None
    if backend.pre_tokenizer is not None or backend.normalizer is not None:
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    words = set(vocabulary) - {token.content for token in backend.get_added_tokens_decoder().values()}
    return frozenset(words) if all(len(word) == 1 for word in words) else None
