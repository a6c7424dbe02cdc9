"""llama.cpp itself, through its C interface: tokens, logits, hidden states and embeddings of a GGUF file in float32.

The package llama-cpp-py-sync brings the library and, made from the same headers, what cffi needs to call it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from anyformer.checkpoint import load
from anyformer.checkpoint.gguf.container import Container
from anyformer.errors import UserError
from anyformer.generation import embed
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix
from anyformer.verify.check import NEW_TOKENS, SAMPLES, Check, compare_tensors, compare_tokens

Gives = Literal["logits", "hidden", "embedding"]


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
        context: Most tokens at once.
        gives: logits, of a model with a decoder; each token's hidden states or one vector for a text, of an encoder.
        adapter: A GGUF file with an adapter for the model.

    Raises:
        UserError: llama.cpp is not installed, or does not open the file; with its own words.
    """

    def __init__(self, path: Path, *, context: int = 512, gives: Gives = "logits", adapter: Path | None = None) -> None:
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
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
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
        if adapter is not None:
            loaded = self._lib.llama_adapter_lora_init(self._model, str(adapter).encode())
            if loaded == self._ffi.NULL:
                raise self._cannot_open(adapter)
            self._lib.llama_set_adapters_lora(
                self._context,
                self._ffi.new("struct llama_adapter_lora *[]", [loaded]),
                1,
                self._ffi.new("float[]", [1.0]),
            )

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
        """Logits after each token, [time, vocabulary]; of a decoder that has read a source, where there is one."""
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


_TOLERANCES = {"F32": 1e-3, "F16": 5e-3, "BF16": 2e-2}
"""llama.cpp rounds what it multiplies to the precision of the weights."""


def verify_gguf(path: Path, original: Transformer, tokenizer: Tokenizer | None) -> list[Check]:
    """Compare a GGUF file as read here, in float32, and by llama.cpp; and what it says with the model it was made from.

    The difference that is allowed, relative to the largest value, follows from what llama.cpp rounds: 1e-3 in F32.

    Args:
        original: The model that the file was made from, in float32; the tokenizer is its own.

    Raises:
        UserError: llama.cpp is not installed, or does not open the file.
    """
    model, _ = load(path, dtype=torch.float32)
    formats = {info.type.name for info in Container(path).tensors.values()}
    # llama.cpp looks GELU up in a table of F16, made by the tanh formula.
    gelu = 5e-3 if model.config.feed_forward.activation.startswith("gelu") else 0.0
    tolerance = max(gelu, *(_TOLERANCES.get(name, 1e-1) for name in formats))
    ids, source = _inputs(model, tokenizer)
    checks: list[Check] = []
    with LlamaCpp(path, gives="logits" if model.decoder is not None else "hidden") as theirs, torch.inference_mode():
        if tokenizer is not None:
            checks.append(compare_tokens(theirs.tokens, tokenizer))
        decodes = model.decoder is not None
        name, expected = ("logits", theirs.logits(ids, source)) if decodes else ("hidden states", theirs.hidden(ids))
        checks.append(compare_tensors(name, [expected], [_output(model, ids, source)], tolerance))
        if decodes:
            checks.append(_greedy(theirs, model, ids, source, tolerance))
        cost = compare_tensors("the model itself", [_output(original, ids, source)], [expected], tolerance)
    if tokenizer is not None and model.decoder is None:
        with LlamaCpp(path, gives="embedding") as theirs:
            vector = normalize(theirs.embedding(tokenizer.encode(SAMPLES[0])), dim=0)
        ours = normalize(embed(model, tokenizer, SAMPLES[:1])[0], dim=0)
        checks.append(compare_tensors("embedding", [vector], [ours], tolerance))
    # A file of F32 has the very weights; those of other formats are rounded.
    weights = original.state_dict()
    same = formats != {"F32"} or all(torch.equal(part, weights[name]) for name, part in model.state_dict().items())
    return [*checks, replace(cost, equal=same)]


def _inputs(model: Transformer, tokenizer: Tokenizer | None) -> tuple[list[int], list[int] | None]:
    """Tokens of a text, or random ones without a tokenizer; for an encoder-decoder they are the source."""
    config = model.config
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(config.vocab_size, (16,), generator=generator).tolist()
    else:
        ids = tokenizer.encode(SAMPLES[0])
    ids = ids[: max(1, min(64, config.max_length - NEW_TOKENS))]
    return ([config.special_tokens.decoder_start or 0, *ids[:4]], ids) if config.is_encoder_decoder else (ids, None)


def _output(model: Transformer, ids: Sequence[int], source: Sequence[int] | None) -> Tensor:
    """Logits [time, vocabulary] of a decoder, hidden states [time, d_model] of an encoder."""
    output = model(torch.tensor([ids]), source=None if source is None else torch.tensor([source]))
    return output.hidden[0] if model.decoder is None or output.logits is None else output.logits[0]


def _greedy(
    theirs: LlamaCpp, model: Transformer, ids: Sequence[int], source: Sequence[int] | None, tolerance: float
) -> Check:
    """Compare greedy texts: equal, or apart at two tokens whose logits are closer to each other than the tolerance."""
    new = min(NEW_TOKENS, model.config.max_length - len(ids))
    there, here = theirs.greedy(ids, new, source), list[int]()
    while len(here) < new:  # past an end-of-text, as there
        here.append(int(_output(model, [*ids, *here], source)[-1].argmax()))
    common = common_prefix(there, here)
    if common == new:
        return Check("greedy continuation", True, f"{new} tokens")
    last = _output(model, [*ids, *here[:common]], source)[-1]
    close = float(last[here[common]] - last[there[common]]) <= 2 * tolerance * float(last.abs().max())
    parting = "where two tokens are as likely" if close else f"{there[common]} there and {here[common]} here"
    return Check("greedy continuation", close, f"{common} tokens, then {parting}")
