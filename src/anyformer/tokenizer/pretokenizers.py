"""How text is split into words before byte-level BPE, by the names that llama.cpp gives it (`tokenizer.ggml.pre`).

GGUF files carry no patterns, only such a name. Several names mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from anyformer.errors import UserError, nearest
from anyformer.tokenizer.legacy import WORD_PATTERN, byte_words

_THREE_DIGITS = WORD_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""LLaMA 3's and OpenAI's cl100k_base."""
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)


def _digit_by_digit() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(*patterns: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Split by one pattern after the other, then write bytes as characters."""
    return lambda: pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False) for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@dataclass(frozen=True)
class Pretokenizer:
    """One way to split text into words."""

    names: str
    """What llama.cpp calls it, with spaces between; the first is written."""
    build: Callable[[], pre_tokenizers.PreTokenizer]
    ignores_merges: bool = False
    """A word that is a token stays whole, whatever the merges say."""
    adds_bos: bool = False
    """A text begins with the first special token, unless the file says otherwise."""
    composes: bool = False
    """Characters are brought into their composed form (NFC) first. llama.cpp leaves that out."""

    @property
    def name(self) -> str:
        """The name that is written."""
        return self.names.split()[0]


PRETOKENIZERS = (
    Pretokenizer(
        "gpt-2 phi-2 roberta-bpe olmo mpt jais trillion exaone4 modern-bert mellum gigachat jina-es jina-de jina-v1-en "
        "jina-v2-es jina-v2-de jina-v2-code",
        _gpt2,
    ),
    Pretokenizer("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _digit_by_digit),
    Pretokenizer("llama-bpe llama3 llama-v3 falcon3 pixtral lfm2", _split(_THREE_DIGITS), True, True),
    Pretokenizer("dbrx smaug-bpe glm4 chatglm-bpe", _split(_THREE_DIGITS)),
    Pretokenizer("qwen2 deepseek-r1-qwen megrez hunyuan solar-open grok-2", byte_words, composes=True),
    Pretokenizer("stablelm2", byte_words),
    Pretokenizer("tekken", _split(_TEKKEN), True, True),
    Pretokenizer("falcon", _split(_PUNCTUATION.replace("]", "`]"), _GPT2_PATTERN, "[0-9][0-9][0-9]")),
    Pretokenizer("default", _split(_PUNCTUATION, _GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]")),
)

_BY_NAME = {name: pretokenizer for pretokenizer in PRETOKENIZERS for name in pretokenizer.names.split()}


def pretokenizer(name: str) -> Pretokenizer:
    """The one of this name. Raises UserError for one that is not known."""
    if name not in _BY_NAME:
        raise UserError(f"The pre-tokenizer {name!r} is not supported ({nearest(name, _BY_NAME)}).")
    return _BY_NAME[name]
