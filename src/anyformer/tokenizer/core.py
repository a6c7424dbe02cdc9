"""Tokenizer: text to ids and back, for any tokenizer that Hugging Face's `tokenizers` library expresses.

StreamDecoder decodes one token at a time: every character as soon as it is certain, none twice.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import tokenizers
from tokenizers import models

from anyformer import atomic, limits
from anyformer.errors import UserError, quote
from anyformer.tokenizer import files, training
from anyformer.tokenizer.library import closed_alphabet, translated
from anyformer.tokenizer.texts import check_text, texts_of

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``, as chat templates read it; may have tool_calls."""

_UNLIMITED = 10**9
"""`transformers` writes 1e30 for a tokenizer without a longest text."""
_LARGEST_ID = 2**32 - 1
_INCOMPLETE = "\ufffd"
_LONGEST_HELD = 16
_LONGEST_CHARACTER = 4  # bytes of UTF-8
_WINDOW = 32
_KEPT = 6


class Tokenizer:
    """A tokenizer and its configuration. It gives the ids and the text that `AutoTokenizer` gives.

    Attributes:
        backend: the `tokenizers.Tokenizer` underneath.
        config: the content of tokenizer_config.json.
        bos, eos, pad, mask, unk, cls, sep: the id of the token in that role, None where there is none.
        chat_template: Jinja source, None where there is none.
        model_max_length: the longest text in tokens that the directory declares, None where it declares none.
    """

    reader: ClassVar[Callable[[Path], Tokenizer]]
    """Loads a directory, or one of its files. It makes Tokenizers, so the package sets it."""

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], companions: Mapping[str, bytes] | None = None
    ) -> None:
        """Wrap a backend, which is taken over: tokens that only `config` (tokenizer_config.json) names are added to it.

        `companions` are the files of the directory it was read from, by name; `save` writes them back unchanged.
        """
        self.backend = backend
        self.config = dict(config)
        self._files = dict(companions or {})
        special_map, added = (
            limits.parse_object(self._files[name], Path(name)) if name in self._files else None
            for name in (files.SPECIAL_MAP, files.ADDED)
        )
        declared = files.declared(config, special_map)
        padding: dict[str, Any] | None = cast("Any", backend).padding
        self._roles = files.roles_of(declared, backend.token_to_id, padding)
        files.add_declared(backend, declared, self._roles, added)
        # Settings of a saved pipeline, not of the text: `transformers` pads and cuts only when asked to.
        backend.no_padding()
        backend.no_truncation()

        self.bos, self.eos, self.unk, self.sep, self.pad, self.cls, self.mask = map(self._id, files.ROLES)
        self.chat_template = self._template()
        longest: object = config.get("model_max_length")
        self.model_max_length: int | None = None
        if isinstance(longest, int | float) and 1 <= longest < _UNLIMITED:
            self.model_max_length = int(longest)
        self.cleans_up = bool(config.get("clean_up_tokenization_spaces")) and not isinstance(backend.model, models.BPE)
        self.alphabet = closed_alphabet(backend)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load from a model's directory, or from one file of it (tokenizer.json, vocab.txt, spiece.model, spm.model).

        Raises:
            UserError: there is no tokenizer, or one of its files is damaged.
        """
        return cls.reader(Path(path))

    @classmethod
    def find(cls, directory: str | os.PathLike[str]) -> Tokenizer | None:
        """Load the directory's tokenizer, None where it has none; raises UserError for a damaged one."""
        return cls.load(directory) if files.has_tokenizer(directory) else None

    @classmethod
    def train(
        cls,
        texts: Iterable[str | training.Piece],
        spec: str,
        *,
        special: str = "causal",
        lowercase: bool = False,
        model_max_length: int | None = None,
    ) -> Tokenizer:
        """Train a tokenizer on text.

        Args:
            texts: the documents, read once; those of `anyformer.data` as they are, since they may come in pieces.
            spec: `char`, `bpe:N`, `wordpiece:N` or `unigram:N`, with N tokens in all, special ones included.
            special: the objective that decides on special tokens: `causal`, `masked`, `span_corruption` or `seq2seq`;
                or `any` of them.
            lowercase: WordPiece only: fold to lower case and strip accents, as BERT's uncased models do.
            model_max_length: written into the config, in tokens.

        Raises:
            UserError: an unknown spec, a size too small for the alphabet, or no text at all.
        """
        backend, config = training.train(texts, spec, special=special, lowercase=lowercase)
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        return Tokenizer(backend, config)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def table_size(self) -> int:
        """Rows that the token table of a text model needs: tokens that stand for an image (Gemma 3) have none."""
        size, added = self.vocab_size, self.backend.get_added_tokens_decoder()
        extra = {**self.config, **(self.config.get("extra_special_tokens") or {})}
        while size - 1 in added and added[size - 1].content == extra.get("image_token"):
            size -= 1
        return size

    @property
    def mask_token(self) -> str | None:
        """The text that stands for a word to be filled in, such as [MASK]."""
        return self._roles["mask"].content if "mask" in self._roles else None

    @property
    def separator(self) -> int | None:
        """The id put between documents: end-of-text, else the separator of a masked model, else None."""
        return self.eos if self.eos is not None else self.sep

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are not text: every token in a role, and every other token marked as special."""
        marked = {id_ for id_, token in self.backend.get_added_tokens_decoder().items() if token.special}
        return frozenset(marked | {id_ for role in self._roles if (id_ := self._id(role)) is not None})

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever some text could get other ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, None where it is not one."""
        return self.backend.token_to_id(token)

    def token(self, index: int) -> str | None:
        """Return the token of an id as the vocabulary spells it, None where there is none."""
        return self.backend.id_to_token(index) if 0 <= index <= _LARGEST_ID else None

    def encode(self, text: str, special: bool = True, second: str | None = None) -> list[int]:
        """Return the ids of a text, or of a pair of texts.

        Args:
            text: any text; special tokens written out in it are recognized.
            special: add what the tokenizer puts around a text ([CLS] and [SEP], a beginning of text ...).
            second: a second text, encoded into the same ids after the first.

        Raises:
            UserError: no text or several, a new character for a character-level tokenizer without an unknown token, or
                a text that is not Unicode text (it holds half of a surrogate pair).
        """
        return list(self._encoding(text, second, special).ids)

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text and the (begin, end) in it of each, as `encode` with ``special=False``."""
        encoding = self._encoding(text, None, special=False)
        return list(encoding.ids), list(encoding.offsets)

    def encode_parts(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of a text, and those that the tokenizer puts before and after it: ``(before, text, after)``.

        Raises UserError as `encode`.
        """
        encoding = self._encoding(text, None, special=True)
        # Only what the tokenizer adds is marked, and not special tokens written out in the text.
        ids, added = list(encoding.ids), list(encoding.special_tokens_mask)
        if 0 not in added:
            return ids, [], []
        first, end = added.index(0), len(added) - added[::-1].index(0)
        return ids[:first], ids[first:end], ids[end:]

    def _encoding(self, text: str, second: str | None, special: bool) -> tokenizers.Encoding:
        for each in (text, second or ""):
            check_text(each, "encode", "`encode_batch` takes a list of them")
        with self._encodable((text,) if second is None else (text, second)):
            return self.backend.encode(text, second, add_special_tokens=special)

    def encode_batch(self, texts: Iterable[str], special: bool = True) -> list[list[int]]:
        """Return the ids of each text, in parallel. Raises UserError as `encode` does."""
        texts = texts_of(texts)
        with self._encodable(texts):
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def encodings(self, texts: Sequence[str | tuple[str, str]]) -> list[tokenizers.Encoding]:
        """Return ids, segments and offsets of each text or pair of texts, with special tokens, in parallel.

        Raises UserError as `encode`.
        """
        with self._encodable(part for text in texts for part in ((text,) if isinstance(text, str) else text)):
            return self.backend.encode_batch(list(texts))

    @contextmanager
    def _encodable(self, texts: Iterable[str]) -> Generator[None]:
        self.require_encodable(texts)
        with translated("The text can't be encoded with this tokenizer"):
            try:
                yield
            except TypeError as error:
                raise UserError("The text can't be encoded: it holds half of a surrogate pair.") from error

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids, without the special tokens unless asked for them.

        Raises UserError where one of them is no whole number from 0 to 2^32 - 1.
        """
        with translated("These ids can't be decoded with this tokenizer"):
            text = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return clean_up(text) if self.cleans_up else text

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Any] | None = None
    ) -> str:
        """Render a conversation, `[{"role": "user", "content": "..."}]`, as the text its model was tuned on.

        Encode the result with `special=False`: a template writes its special tokens itself.

        Args:
            messages: the conversation.
            add_generation_prompt: end with what comes before the assistant's next message.
            tools: descriptions of functions that the model may call, as JSON schemas.

        Raises:
            UserError: there is no chat template, or it refuses the messages.
        """
        return self.chat_spans(messages, add_generation_prompt, tools)[0]

    def chat_spans(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render a conversation as `chat` does.

        Also returns begin and end in the text of what the template marks as the assistant's, by ``{% generation %}``.
        """
        if self.chat_template is None:
            raise UserError(
                "This tokenizer has no chat template, so its model wasn't tuned for chat: give it a plain prompt."
            )
        from anyformer.tokenizer import template_sandbox

        variables = {f"{role}_token": token.content for role, token in self._roles.items()}
        return template_sandbox.render(self.chat_template, messages, add_generation_prompt, variables, tools)

    def with_chat_template(self, template: str) -> Tokenizer:
        """Return this tokenizer with another chat template."""
        made = copy.copy(self)
        made.chat_template = template
        made._files = {**self._files, files.CHAT_TEMPLATE: template.encode()}
        return made

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a directory so that `AutoTokenizer.from_pretrained` gives the same ids.

        Files that were read when it was loaded are written as they were read. Raises UserError where it can't be
        written.
        """
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The tokenizer can't be written to {directory}: {error.strerror or error}.") from error
        for name, content in self.serialized().items():
            atomic.write(directory / name, content)

    def serialized(self) -> dict[str, bytes]:
        """Return the files that `save` writes, by name."""
        pipeline = (self.backend.to_str(pretty=True) + "\n").encode("utf-8")
        config = files.to_json(self.complete_config())
        made = {files.TOKENIZER: pipeline, files.CONFIG: config}
        return {**files.vocabulary_files(self.backend), **made, **self._files}

    def complete_config(self) -> dict[str, Any]:
        """Return the config with every role spelt out, for a reader that knows no conventions."""
        roles = {f"{role}_token": token.content for role, token in self._roles.items()}
        return {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **self.config}

    def _id(self, role: str) -> int | None:
        token = self._roles.get(role)
        return self.backend.token_to_id(token.content) if token is not None else None

    def _template(self) -> str | None:
        if files.CHAT_TEMPLATE in self._files:
            return self._files[files.CHAT_TEMPLATE].decode("utf-8")
        template: object = self.config.get("chat_template")
        if isinstance(template, list):
            named = {str(entry["name"]): str(entry["template"]) for entry in cast("list[dict[str, Any]]", template)}
            return named.get("default")
        return template if isinstance(template, str) else None

    def require_encodable(self, texts: Iterable[str]) -> None:
        """Raise UserError when a character-level tokenizer without an unknown token would drop a character."""
        if self.alphabet is None:
            return
        for text in texts:
            if self.alphabet.issuperset(text):
                continue
            for token in self.backend.get_added_tokens_decoder().values():
                text = text.replace(token.content, "")
            for character in text:
                if character not in self.alphabet:
                    raise UserError(
                        f"The character {quote(character)} (U+{ord(character):04X}) is not in this character-level "
                        "tokenizer: it knows only those of the text it was trained on."
                    )


class StreamDecoder:
    """Turns a stream of token ids into a stream of text.

    A token may hold half a character, and a token's text may depend on the one before it (a leading space),
    so a short window of the latest ids is decoded again at each push and what is new of its text handed out.
    The end of the window's text is held back while it might still change: a character whose bytes are
    incomplete decodes to U+FFFD. The pushes and the flush, joined, are the text of decoding all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """Start a stream; special tokens have no text unless asked for."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._clean_up_reach = 8 if tokenizer.cleans_up else 0
        self._window: list[int] = []
        self._sent = 0

    def push(self, *tokens: int) -> str:
        """Take the next ids and return the new text, "" while a character is incomplete."""
        self._window += tokens
        text = self._decode(self._window)
        incomplete = _incomplete(text)
        if incomplete > 1:
            # Where tokens are single bytes, a whole run of them is held while its last character is incomplete.
            shorter = (self._decode(self._window[:-missing]) for missing in range(1, _LONGEST_CHARACTER))
            text = next((each for each in shorter if not _incomplete(each)), text)
        end = max(self._sent, len(text) - max(min(_incomplete(text), _LONGEST_HELD), self._clean_up_reach))
        new = text[self._sent : end]
        self._sent = end
        if len(self._window) >= _WINDOW and not incomplete and not self._clean_up_reach:
            # Only the last few ids are kept as context, if they decode alone to what they are in the whole.
            tail = self._window[-_KEPT:]
            alone = self._decode(tail)
            if alone and _INCOMPLETE not in alone and text.endswith(alone):
                self._window, self._sent = tail, len(alone)
        return new

    def flush(self) -> str:
        """Return what was held back, at the end of the stream, and start afresh."""
        rest = self._decode(self._window)[self._sent :]
        self._window, self._sent = [], 0
        return rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)


def _incomplete(text: str) -> int:
    """The number of characters at the end of a text whose bytes are incomplete."""
    return len(text) - len(text.rstrip(_INCOMPLETE))


def clean_up(text: str) -> str:
    """Undo the spaces that splitting on punctuation puts in, as `clean_up_tokenization_spaces` asks."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
