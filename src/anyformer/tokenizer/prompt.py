"""Prompts of a decoder as ids: a text, or a conversation. Training and generation share them."""

from collections.abc import Sequence
from typing import Any

from anyformer.config import SpecialTokens
from anyformer.errors import UserError, quote
from anyformer.tokenizer.core import Message, Tokenizer

NEXT_TURN = "\nUser:"
"""Beginning of the next turn, which a model without a chat template writes if it doesn't end the text."""
_SPEAKERS = {"system": "", "user": "User: ", "assistant": "Assistant: "}
_PLAIN_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] or message['content'] is not string %}
        {{- raise_exception('message ' ~ loop.index ~ ' is no text of system, user or assistant') }}
    {%- endif %}
    {{- {'system': '', 'user': 'User: ', 'assistant': 'Assistant: '}[message['role']] ~ message['content'] | trim }}
    {{- eos_token if loop.last and message['role'] == 'assistant' and not add_generation_prompt else '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}"""
"""The plain lines, with the end of text behind the last answer, as training has it."""


def encode_decoder_prompt(tokenizer: Tokenizer, text: str, tokens: SpecialTokens | None = None) -> list[int]:
    """The ids of a text that is to be continued.

    It gets only those special tokens that the tokenizer puts before it, without an end-of-text; an empty one begins
    with the beginning-of-text token, the model's own if `tokens` has one, and has no ids where there is none.
    """
    tokens = tokens or SpecialTokens()
    before, plain, after = tokenizer.encode_parts(text)
    if plain:
        return before + plain
    bos = tokens.bos if tokens.bos is not None else tokenizer.bos
    ids = before + after
    while ids and ids[-1] in {tokenizer.eos, tokenizer.sep, *tokens.eos} - {bos}:
        ids.pop()
    return ids or ([] if bos is None else [bos])


def render_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] | None = None
) -> str:
    """The text of a conversation: by the chat template, or in plain lines where there is none.

    Raises UserError where the template refuses the messages, or they can't be shown without one.
    """
    if tokenizer.chat_template is not None:
        return tokenizer.chat(messages, add_generation_prompt, tools)
    return _render_plain(messages, add_generation_prompt)


def _render_plain(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Lines that begin with ``User:`` and ``Assistant:``.

    Raises UserError for a message of somebody else, or one that is no text.
    """
    lines: list[str] = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in _SPEAKERS or not isinstance(content, str):
            kind = f"of {quote(role)}" if role not in _SPEAKERS else "without text"
            raise UserError(
                f"Message {number} is {kind}, and without a chat template only texts of 'system', 'user' and "
                "'assistant' can be shown to the model."
            )
        lines.append(f"{_SPEAKERS[role]}{content.strip()}\n")
    return "".join(lines) + "Assistant:" * add_generation_prompt


def is_plain(tokenizer: Tokenizer) -> bool:
    """Whether conversations are shown in plain lines: there is no chat template, or that of `with_plain_template`."""
    return tokenizer.chat_template is None or tokenizer.chat_template.endswith(_PLAIN_TEMPLATE)


def with_plain_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a model that learned conversations: without a chat template it gets that of the plain lines.

    It stays as it is where no template gives the ids that were learned.
    """
    if tokenizer.chat_template is not None:
        return tokenizer
    messages = [{"role": "user", "content": "?"}]
    learned = encode_conversation(tokenizer, _render_plain(messages, True))
    for start in ("", "{{- bos_token }}", "{{- bos_token ~ ' ' }}"):  # some put a space before the first word of a text
        made = tokenizer.with_chat_template(start + _PLAIN_TEMPLATE)
        if made.encode(made.chat(messages), special=False) == learned:
            return made
    return tokenizer


def encode_conversation(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a conversation that `render_conversation` made: a template writes its special tokens itself.

    Raises UserError where the template makes nothing of the conversation.
    """
    if tokenizer.chat_template is None:
        return encode_decoder_prompt(tokenizer, text)
    ids = tokenizer.encode(text, special=False)
    if not ids:
        raise UserError("The chat template makes nothing of these messages: correct it, or take it out.")
    return ids


def encode_continuation(
    tokenizer: Tokenizer, prompt: Sequence[int], whole: Sequence[int], text: str
) -> tuple[list[int], bool]:
    """The ids of a text behind a prompt whose ids stay as they are, as they do in generation.

    `whole` are the ids of the prompt and the text, encoded together. Also returns whether the tokenizer would have
    merged characters on both sides of the border between the two.
    """
    if list(whole[: len(prompt)]) == list(prompt):
        return list(whole[len(prompt) :]), False
    # Behind a line end, as some tokenizers put a space before a text.
    try:
        newline, ids = (tokenizer.encode(each, special=False) for each in ("\n", f"\n{text}"))
    except UserError:  # a tokenizer of characters that doesn't know the line end
        newline, ids = [], []
    if newline and ids[: len(newline)] == newline:
        return ids[len(newline) :], True
    return tokenizer.encode(text, special=False), True


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """The number of ids, or characters, that two texts have in common at their beginnings."""
    if second[: len(first)] == first:
        return len(first)  # the usual case, and quicker so
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (one, other) in pairs if one != other), len(second))
