"""Structured output: grammars that a text obeys token by token, by llguidance."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.logits_processors import History
from anyformer.generation.request import Constraint
from anyformer.limits import check_depth
from anyformer.model import Transformer
from anyformer.serving.token_text import TokenText
from anyformer.terminal import shorten
from anyformer.tokenizer import Tokenizer

LONGEST_SCHEMA = 64 << 10
"""Bytes of a JSON schema."""
LONGEST_REGEX = 4 << 10
"""Characters of a regex."""
_LONGEST_REASON = 300
_LIMITS = LLParserLimits(
    max_grammar_size=100_000,
    max_lexer_states=20_000,
    max_items_in_row=20_000,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=50_000,
    verbose_errors=False,
)
"""Bounds on what a grammar takes: about 0.3 s before the first token, and 0.1 s for each."""
_JSON = {
    # Bounded, since a weak model would write spaces for ever.
    "whitespace_pattern": r"( |\n {0,20})?",
    "lenient": False,
    "coerce_one_of": False,
}
"""How JSON is written. Keywords that can't be enforced are refused."""
_COMPILED = 32
_masks = ThreadPoolExecutor(2, thread_name_prefix="anyformer-grammar")


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """A JSON schema as the body of a Lark rule. Raises UserError for one that is too large."""
    if isinstance(schema, bool):
        if not schema:
            raise UserError("The schema allows nothing.")
        schema = {}
    check_depth(schema, "The schema")
    text = json.dumps({**schema, "x-guidance": _JSON})
    if len(text) > LONGEST_SCHEMA:
        raise UserError(f"The schema has {len(text):,} bytes, and {LONGEST_SCHEMA:,} are allowed.")
    return f"%json {text}"


def regex_rule(regex: str) -> str:
    """A regex, which the whole text matches, as the body of a Lark rule. Raises UserError for one that is too long."""
    if len(regex) > LONGEST_REGEX:
        raise UserError(f"The regex has {len(regex):,} characters, and {LONGEST_REGEX:,} are allowed.")
    try:
        return f"/{regex_to_lark(regex, '')}/"
    except UnicodeEncodeError:
        raise UserError("The regex is no Unicode text: it holds half of a surrogate pair.") from None


class Grammars:
    """Compiles grammars for a model.

    Args:
        eos: Tokens that end a text.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, eos: Sequence[int]) -> None:
        token_text = TokenText(tokenizer)
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._matcher = lru_cache(_COMPILED)(self._compile)
        self.vocab_size = model.config.vocab_size
        self.is_exact = not tokenizer.cleans_up and token_text.is_exact
        self._text, self._eos = token_text, [token for token in eos if token < self.vocab_size]

    def compile(self, rules: str, prompt: Sequence[int] = ()) -> Callable[[], Constraint]:
        """Compile a grammar.

        Args:
            rules: Lark rules with one named ``text``.

        Returns:
            A function that makes a constraint for each text.

        Raises:
            UserError: a grammar that can't be enforced.
        """
        if not self.is_exact:
            raise UserError("It can't be enforced: this model's tokenizer changes its text when it is decoded.")
        if "%json" in rules and not self.writes_json:
            raise UserError("It can't be enforced: this model's vocabulary lacks characters of JSON.")
        space = '" " ' if self._loses_space(prompt) else ""
        lark = f"start: {space}text\n{rules}"
        first, vocab_size = self._matcher(lark), self.vocab_size
        return lambda: TokenMask(first.deep_copy(), vocab_size)

    def _compile(self, lark: str) -> LLMatcher:
        with self._lock:
            vocabulary = self._vocabulary
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(lark), log_level=0, limits=_LIMITS)
        # A fault shows at once, or with the first token, which the model may not be able to write, or behind it.
        mask = b"" if matcher.is_error() else matcher.compute_logit_bias()[:-1]
        first = next((token for token, allowed in enumerate(mask) if allowed), None)
        if first is not None and not matcher.is_error():
            tried = matcher.deep_copy()
            tried.consume_token(first)
            first, matcher = (None, tried) if tried.is_error() else (first, matcher)
        if first is None or matcher.is_error():
            raise UserError(f"It can't be enforced: {_reason(matcher)}")
        return matcher

    @cached_property
    def writes_json(self) -> bool:
        """Whether all characters that JSON needs are tokens."""
        single = {each for each in map(self._text.bytes, range(self._tokenizer.vocab_size)) if len(each) == 1}
        return all(bytes([byte]) in single for byte in b'{}[]":,-.0123456789')

    def literal(self, text: str) -> str:
        """A fixed text as part of a Lark rule, which an empty one is none of; special tokens in it are those."""
        return " ".join(
            json.dumps(piece, ensure_ascii=False) if token is None else f"<[{token}]>"
            for piece, token in self._text.split_special(text)
        )

    def _loses_space(self, prompt: Sequence[int]) -> bool:
        """Whether a space before the text is lost, as sentencepiece's at the beginning."""
        space = self._text.space
        if space is None:
            return False
        before = list(prompt[-32:])
        text = self._tokenizer.decode(before) if before else ""
        return not self._tokenizer.decode([*before, space])[len(text) :].startswith(" ")

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        vocabulary: Any = _Vocabulary(self._tokenizer, self._text, self.vocab_size, self._eos)
        return LLTokenizer(vocabulary, slices=None)


class _Vocabulary:
    """The tokens of a model, as llguidance reads them. Behind them is one more, which no model writes.

    It ends the text of a model without an end-of-text.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, token_text: TokenText, vocab_size: int, eos: Sequence[int]) -> None:
        special = {token for token in (*tokenizer.special_ids, *eos) if token < vocab_size}
        self.tokens = [token_text.bytes(token) for token in range(vocab_size)]
        for token in special:
            self.tokens[token] = self.tokens[token] or b"<special>"
        self.tokens.append(b"<end>")
        special.add(vocab_size)
        self.special_token_ids = list(special)
        self.eos_token_id = eos[0] if eos else vocab_size
        self._tokenizer = tokenizer
        self._ids = {raw: token for token, raw in enumerate(self.tokens) if raw and token not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text that the grammar forces: those that the model would read, if their bytes are the same.

        Else the longest that fit, since sentencepiece puts a space before every text.
        """
        raw = text.encode() if isinstance(text, str) else text
        try:
            ids = self._tokenizer.encode(raw.decode(), special=False)
        except (UserError, UnicodeDecodeError):
            ids = []
        if max(ids, default=0) < len(self.tokens) and b"".join(self.tokens[token] for token in ids) == raw:
            return ids
        ids = list[int]()
        while raw:
            sizes = range(min(self._longest, len(raw)), 0, -1)
            token = next((self._ids[raw[:size]] for size in sizes if raw[:size] in self._ids), None)
            if token is None:
                break
            ids.append(token)
            raw = raw[len(self.tokens[token]) :]
        return ids


class TokenMask:
    """A constraint by a grammar. The mask of the next token is computed while the model runs.

    Args:
        matcher: The state of the grammar; it is taken over.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._mask: Future[bytes] = _masks.submit(matcher.compute_logit_bias)

    def __call__(self, logits: Tensor, history: History) -> Tensor:
        """The logits, with -inf for each token that may not come next.

        Raises:
            UserError: none may, since the vocabulary can't go on.
        """
        mask = self._mask.result()
        allowed = torch.frombuffer(bytearray(mask), dtype=torch.uint8)[: self._vocab_size].to(logits.device) > 0
        masked = logits.masked_fill(~allowed, -torch.inf)
        if masked.isfinite().any():
            return masked
        if self._matcher.is_error() or not allowed.any():
            raise UserError(f"No token can follow within the grammar: {_reason(self._matcher)}")
        return torch.zeros_like(logits).masked_fill(~allowed, -torch.inf)  # others ban all that it allows

    def push(self, token: int) -> bool:
        """Note the token that was chosen; returns whether nothing may follow it."""
        if not self._matcher.consume_token(token):
            raise UserError(f"A token is not allowed by the grammar: {_reason(self._matcher)}")
        if self._matcher.is_stopped():
            return True
        self._mask = _masks.submit(self._matcher.compute_logit_bias)
        return False


def _reason(matcher: LLMatcher) -> str:
    error = matcher.get_error()
    if not error or "panic" in error or "NoExtension" in error:
        error = "no text obeys it that the model's vocabulary can write"
    error = error.replace("<non-verbose/>", "")
    lines = error.splitlines()
    said = [line.strip() for line in lines if line.strip() and not set(line.strip()) <= set("^ ")]
    return shorten(" ".join(line for line in said if "|" not in line[:8]), _LONGEST_REASON).rstrip(". ") + "."
