"""Comparisons of a model with the same model in Hugging Face's transformers: token ids, hidden states, logits, text."""

import contextlib
import io
from collections.abc import Generator
from typing import Any, cast

import torch
from torch import Tensor

from anyformer.checkpoint import hub, load
from anyformer.checkpoint.gguf.container import Container
from anyformer.errors import UserError
from anyformer.families import to_huggingface
from anyformer.families.own import quantization_method
from anyformer.generation import generate_ids
from anyformer.limits import read_object
from anyformer.model import ModelOutput, Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.verify.check import NEW_TOKENS, SAMPLES, Check, compare_tensors, compare_tokens
from anyformer.verify.llama_cpp import verify_gguf

_WHOLE_IN_TRANSFORMERS = ("llama", "qwen2", "qwen3")
"""Architectures of GGUF's that transformers reads as they are. It has none of BERT's, passes over the width and the
positions of a GPT-2, and computes every T5 by one activation."""


def verify(
    path_or_hub_id: str,
    *,
    tolerance: float = 1e-4,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    quantize: str | None = None,
    allow_pickle: bool = False,
) -> list[Check]:
    """Compare a model directory or GGUF file as read here and by transformers, both in float32 on the CPU.

    GGUF files that transformers does not read, or not faithfully, are compared with llama.cpp.

    Args:
        tolerance: Largest difference allowed, relative to the largest magnitude.
        device, dtype, quantize: How it is loaded here, see `load`; transformers keeps to float32 on the CPU.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors, here and there.

    Raises:
        UserError: transformers (or llama.cpp) is not installed, can't open the model, or would run code of its own.
    """
    path = hub.find(path_or_hub_id, allow_pickle=allow_pickle)
    if path.is_dir() and quantization_method(read_object(path / "config.json")) is not None:
        raise UserError(
            f"{path_or_hub_id} holds integers, which transformers can't read: verify the model that they were made of."
        )
    in_llama_cpp = path.is_file() and Container(path).metadata.get("general.architecture") not in _WHOLE_IN_TRANSFORMERS
    if in_llama_cpp and (quantize is not None or dtype not in (None, "float32", torch.float32)):
        raise UserError(
            f"{path} is compared with llama.cpp, and for that computed in float32: leave out --dtype and --quantize."
        )
    model, tokenizer = load(path, dtype or torch.float32, device, quantize=quantize, allow_pickle=allow_pickle)
    if in_llama_cpp:
        return verify_gguf(path, model, tokenizer)[:-1]  # the last compares with what the file was made from
    transformers = _transformers()
    config = to_huggingface(model.config)[1] if path.is_file() else read_object(path / "config.json")
    if not (names := cast("list[str] | None", config.get("architectures"))):
        raise UserError(f"{path / 'config.json'} names no architecture, so transformers can't be asked for one.")
    kind = _model_class(transformers, names[0])
    gguf_file: dict[str, str] = {"gguf_file": path.name} if path.is_file() else {}
    directory = path.parent if path.is_file() else path
    if (directory / "adapter_config.json").exists() and not gguf_file:
        raise UserError(f"{directory} holds an adapter, so transformers would open another model: move it away.")
    # transformers runs no code of the model's, and asks nobody whether to, looks for nothing elsewhere, and unpickles
    # nothing but tensors, and those only if asked to.
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, **gguf_file}
    weights: dict[str, Any] = {
        "use_safetensors": None if allow_pickle else True,
        "weights_only": True,
        "dtype": torch.float32,
    }
    if "/" in str(config.get("attn_implementation")):
        weights["attn_implementation"] = "eager"  # instead of a kernel of the hub
    silent = contextlib.redirect_stderr(io.StringIO()) if gguf_file else contextlib.nullcontext()  # a progress bar
    with silent, _theirs(path):
        theirs = kind.from_pretrained(str(directory), **weights, **options).eval()
    checks: list[Check] = []
    if tokenizer is not None:
        with _theirs(path):
            theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), **options)

        def encode(text: str) -> list[int]:
            with _theirs(path):
                return theirs_tokenizer(text)["input_ids"]

        checks.append(compare_tokens(encode, tokenizer))
    with torch.inference_mode():
        checks += _numbers(theirs, model, tokenizer, tolerance)
        if model.decoder is not None and model.config.head.kind == "language_model":
            checks.append(_greedy(theirs, model, tokenizer))
    return checks


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "verify compares with transformers, which is not installed: pip install 'anyformer[verify]'."
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _model_class(transformers: Any, name: object) -> Any:
    """The model class that config.json names. Raises UserError where that is none, but another part of transformers."""
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UserError(f"transformers has no class {name}, so there is nothing to compare with.")
    return kind


@contextlib.contextmanager
def _theirs(what: object = "this model") -> Generator[None]:
    """Call transformers. Raises UserError where it fails, whatever it raises."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{what} brings its own code, which transformers would need and nobody here runs: there is nothing to "
                "compare with."
            ) from error
        lines = str(error).strip().splitlines()
        raise UserError(f"transformers can't read {what}: {lines[0] if lines else type(error).__name__}") from error


def _numbers(theirs: Any, model: Transformer, tokenizer: Tokenizer | None, tolerance: float) -> list[Check]:
    """Logits and hidden states of a batch of one text."""
    ids, source = _inputs(model, tokenizer)
    inputs = {"input_ids": ids} if source is None else {"input_ids": source, "decoder_input_ids": ids}
    with _theirs():
        expected = theirs(**inputs, output_hidden_states=True)
    if model.config.is_encoder_decoder:
        states = (*expected.encoder_hidden_states, *expected.decoder_hidden_states)
    else:
        states = expected.hidden_states
    got: ModelOutput = model(ids, source=source, return_hidden=True)
    ours = (*(got.source_hidden_states or ()), *(got.hidden_states or ()))
    checks = [compare_tensors("hidden states", states, ours, tolerance)]
    if got.logits is not None:
        checks.insert(0, compare_tensors("logits", [expected.logits], [got.logits], tolerance))
    return checks


def _inputs(model: Transformer, tokenizer: Tokenizer | None) -> tuple[Tensor, Tensor | None]:
    """Tokens of the first sample, or random ones without a tokenizer; and the source of an encoder-decoder that writes.

    A classifier with two stacks reads the tokens with both.
    """
    config = model.config
    limit = min(config.context_length or 64, 64)
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        smallest = min(config.vocab_size, config.source_vocab_size or config.vocab_size)
        ids = torch.randint(smallest, (1, min(limit, 16)), generator=generator)
    else:
        ids = torch.tensor([tokenizer.encode(SAMPLES[0])[:limit]])
    ids = ids.clamp(max=config.vocab_size - 1)
    if config.head.kind == "classification" and config.decoder_layers:
        # transformers finds the last token of a text by its id: the last that isn't padding, or the last eos.
        ids = ids[ids != config.special_tokens.pad][None]
        if config.is_encoder_decoder:
            ids[:, -1] = config.special_tokens.eos[0]
        return ids, None
    return ids, ids if config.is_encoder_decoder else None


def _greedy(theirs: Any, model: Transformer, tokenizer: Tokenizer | None) -> Check:
    ids, source = _inputs(model, tokenizer)
    prompt = ids if source is None else source
    new = min(NEW_TOKENS, (model.config.context_length or ids.shape[1] + NEW_TOKENS) - ids.shape[1])
    mask = torch.ones_like(prompt)
    greedy = {"max_new_tokens": new, "do_sample": False, "num_beams": 1, "trust_remote_code": False}
    with _theirs():
        expected = theirs.generate(prompt, attention_mask=mask, **greedy)
    expected = expected[:, ids.shape[1] if source is None else 1 :]
    got = generate_ids(model, prompt, max_new_tokens=new, beams=1)
    if torch.equal(expected, got):
        return Check("greedy continuation", True, f"{got.shape[1]} tokens")
    there, here = (" ".join(str(int(token)) for token in row[0]) for row in (expected, got))
    return Check("greedy continuation", False, f"{there} there and {here} here")
