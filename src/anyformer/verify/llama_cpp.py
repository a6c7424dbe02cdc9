"""llama.cpp itself, through its C interface: tokens, logits, hidden states and embeddings of a GGUF file in float32.

The package llama-cpp-py-sync brings the library and, made from the same headers, what cffi needs to call it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from anyformer.errors import UserError

Gives = Literal["logits", "hidden", "embedding"]
_CONTEXT = 512
"""Most tokens at once."""


def library() -> tuple[Any, Any]:
    """The library and its cffi. Raises UserError where it is not installed."""
    try:
        from llama_cpp_py_sync import _cffi_bindings as bindings  # pyright: ignore[reportMissingImports]

        return bindings.get_lib(), bindings.get_ffi()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "Comparing with llama.cpp needs it installed: pip install 'anyformer[verify]' (there are wheels for "
            "Linux on x86-64, macOS on ARM and Windows)."
        ) from error


class LlamaCpp:
    """A GGUF file opened by llama.cpp on one thread; a context manager.

    Args:
        gives: logits, of a model with a decoder; each token's hidden states or one vector for a text, of an encoder.

    Raises:
        UserError: llama.cpp is not installed, or does not open the file; with its own words.
    """

    def __init__(self, path: Path, *, gives: Gives = "logits") -> None:
        self._lib, self._ffi = library()
        self._errors: list[str] = []
        # Kept, as the library calls it for as long as it lives; it would print on standard error without.
        self._logger = self._ffi.callback("void(enum ggml_log_level, const char *, void *)", self._log)
        self._lib.llama_log_set(self._logger, self._ffi.NULL)
        self._lib.llama_backend_init()
        parameters = self._lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        # Weights repacked for some processors are rounded on the way.
        parameters.use_extra_bufts = False
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), parameters)
        if self._model == self._ffi.NULL:
            raise self._cannot_open(path)
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        parameters = self._lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = _CONTEXT
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = 0  # F32
        parameters.flash_attn_type = 0  # none
        parameters.embeddings = gives != "logits"
        parameters.pooling_type = -1 if gives == "embedding" else 0  # what the file says, or none
        self._context = self._lib.llama_init_from_model(self._model, parameters)
        if self._context == self._ffi.NULL:
            self._lib.llama_model_free(self._model)
            raise self._cannot_open(path)
        self._width = int(self._lib.llama_model_n_embd(self._model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
        self._lib.llama_log_set(self._ffi.NULL, self._ffi.NULL)

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, with what the file puts around it; special tokens in it are recognized."""
        content = text.encode("utf-8")
        room = len(content) + 8
        ids = self._ffi.new("llama_token[]", room)
        count = self._lib.llama_tokenize(self._vocabulary, content, len(content), ids, room, True, True)
        return list(ids[0:count])

    def logits(self, ids: Sequence[int], source: Sequence[int] | None = None) -> Tensor:
        """Logits after each token [time, vocabulary], of a decoder that has read a source where there is one."""
        self._start(source)
        return self._decode(ids, 0)

    def greedy(self, ids: Sequence[int], count: int, source: Sequence[int] | None = None) -> list[int]:
        """The likeliest tokens after these, one by one through llama.cpp's cache, whether or not one ends the text."""
        self._start(source)
        last, written = self._decode(ids, 0)[-1], list[int]()
        for position in range(len(ids), len(ids) + count):
            written.append(int(last.argmax()))
            last = self._decode(written[-1:], position)[-1]
        return written

    def hidden(self, ids: Sequence[int]) -> Tensor:
        """An encoder's last hidden states, [time, d_model]."""
        self._start(None)
        self._call(self._lib.llama_encode, ids, 0)
        return self._rows(self._lib.llama_get_embeddings(self._context), len(ids), self._width)

    def embedding(self, ids: Sequence[int]) -> Tensor:
        """One vector for the text, [d_model], pooled as the file says."""
        self._start(None)
        self._call(self._lib.llama_encode, ids, 0)
        return self._rows(self._lib.llama_get_embeddings_seq(self._context, 0), 1, self._width)[0]

    def _cannot_open(self, path: Path) -> UserError:
        reason = self._errors[0].strip().rstrip(".") if self._errors else "it does not say why"
        return UserError(f"llama.cpp does not open {path}: {reason}.")

    def _log(self, level: int, text: Any, _: Any) -> None:
        if level == 4:  # an error
            self._errors.append(self._ffi.string(text).decode("utf-8", "replace"))

    def _start(self, source: Sequence[int] | None) -> None:
        memory = self._lib.llama_get_memory(self._context)
        if memory != self._ffi.NULL:
            self._lib.llama_memory_clear(memory, True)
        if source is not None:
            self._call(self._lib.llama_encode, source, 0)

    def _decode(self, ids: Sequence[int], position: int) -> Tensor:
        self._call(self._lib.llama_decode, ids, position)
        size = int(self._lib.llama_vocab_n_tokens(self._vocabulary))
        return self._rows(self._lib.llama_get_logits(self._context), len(ids), size)

    def _call(self, function: Any, ids: Sequence[int], position: int) -> None:
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            status = function(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if status != 0:
            raise UserError(f"llama.cpp could not compute {len(ids)} tokens (status {status}).")

    def _rows(self, pointer: Any, rows: int, columns: int) -> Tensor:
        if pointer == self._ffi.NULL:
            raise UserError("llama.cpp has no such answer for this model.")
        content = bytearray(self._ffi.buffer(pointer, rows * columns * 4))
        return torch.frombuffer(content, dtype=torch.float32).view(rows, columns)
