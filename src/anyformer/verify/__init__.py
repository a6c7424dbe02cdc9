"""Comparisons of a model with the same model in transformers, and of a GGUF file in llama.cpp: ids, tensors, text."""

import contextlib
import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from anyformer.blocks.experts import Experts
from anyformer.checkpoint import hub, load
from anyformer.checkpoint.gguf.container import Container
from anyformer.checkpoint.load import require_model
from anyformer.checkpoint.mxfp4 import METHOD
from anyformer.errors import UserError
from anyformer.families import to_huggingface
from anyformer.families.own import quantization_method
from anyformer.generation import embed, generate_ids
from anyformer.limits import read_object
from anyformer.model import ModelOutput, Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix
from anyformer.verify.llama_cpp import LlamaCpp

SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b  # 1, 2, 3\n",
    "Grüße aus Köln: 12,50 € kosten 3 Stück.",
    "   Spaces,\ttabs and\n\nnew lines   ",
    "日本語のテキスト 🙂",
)
NEW_TOKENS = 20
_WHOLE_IN_TRANSFORMERS = ("llama", "qwen2", "qwen3")
"""Architectures of GGUF's that transformers reads as they are. It has none of BERT's, passes over the width and the
positions of a GPT-2, and computes every T5 by one activation."""
_TOLERANCES = {"F32": 1e-3, "F16": 5e-3, "BF16": 2e-2}
"""llama.cpp rounds what it multiplies to the precision of the weights."""


@dataclass(frozen=True)
class Check:
    """One comparison and its outcome."""

    name: str
    equal: bool
    detail: str
    is_rounded: bool = False
    """Whether the one side has rounded weights, so that a difference is expected and no fault."""


def compare_tokens(encode: Callable[[str], list[int]], ours: Tokenizer) -> Check:
    """Check that a tokenizer gives the ids of another one's `encode`."""
    for text in _samples(ours):
        expected, got = encode(text), ours.encode(text)
        if expected != got:
            return Check("token ids", False, f"{text!r} is {expected} there and {got} here")
    return Check("token ids", True, f"{len(SAMPLES)} texts, {ours.vocab_size} tokens")


def compare_tensors(name: str, expected: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> Check:
    """Check that tensors are equal up to a tolerance, relative to the largest value of each."""
    if len(expected) != len(got):
        return Check(name, False, f"{len(expected)} there and {len(got)} here")
    worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(expected, got, strict=True))
    return Check(name, worst <= tolerance, f"largest difference {worst:.1e} of the largest value")


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
        UserError: transformers (or llama.cpp) is not installed, can't open the model, or would run code of its own;
            a directory that holds an adapter alone.
    """
    require_model(path_or_hub_id)
    path = hub.find(path_or_hub_id, allow_pickle=allow_pickle)
    if path.is_dir() and quantization_method(read_object(path / "config.json")) not in (None, METHOD):
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
    # transformers runs no code of the model's, and asks nobody whether to, looks for nothing elsewhere, and unpickles
    # nothing but tensors, and those only if asked to.
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    directory = str(path)
    if path.is_file():
        directory, options["gguf_file"] = str(path.parent), path.name
    elif (path / "adapter_config.json").exists():
        raise UserError(f"{path} holds an adapter, so transformers would open another model: move it away.")
    weights: dict[str, Any] = {"use_safetensors": None if allow_pickle else True, "weights_only": True}
    if "/" in str(config.get("attn_implementation")):
        weights["attn_implementation"] = "eager"  # instead of a kernel of the hub
    with contextlib.redirect_stderr(io.StringIO()), _theirs(path):  # a progress bar
        theirs = kind.from_pretrained(directory, dtype=torch.float32, **weights, **options).eval()
    if Experts in map(type, model.modules()) and hasattr(theirs, "set_experts_implementation"):
        theirs.set_experts_implementation("eager")  # torch's product of all experts takes some widths only
    checks: list[Check] = []
    if tokenizer is not None:
        with _theirs(path):
            theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **options)

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
    """Call transformers; raise UserError where it fails, whatever it raises."""
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
    logits = [] if got.logits is None else [compare_tensors("logits", [expected.logits], [got.logits], tolerance)]
    return [*logits, compare_tensors("hidden states", states, ours, tolerance)]


def _samples(tokenizer: Tokenizer) -> list[str]:
    """The samples, without the characters that a tokenizer of a closed alphabet refuses."""
    known = tokenizer.alphabet
    return list(SAMPLES) if known is None else ["".join(filter(known.__contains__, text)) for text in SAMPLES]


def _inputs(model: Transformer, tokenizer: Tokenizer | None) -> tuple[Tensor, Tensor | None]:
    """Tokens of the first sample, random ones where it has none; and the source of an encoder-decoder that writes.

    A classifier with two stacks reads the tokens with both.
    """
    config = model.config
    limit = min(config.context_length or 64, 64)
    sample = [] if tokenizer is None else tokenizer.encode(_samples(tokenizer)[0])[:limit]
    if not sample:
        generator = torch.Generator().manual_seed(0)
        smallest = min(config.vocab_size, config.source_vocab_size or config.vocab_size)
        ids = torch.randint(smallest, (1, min(limit, 16)), generator=generator)
    else:
        ids = torch.tensor([sample])
    ids = ids.clamp(max=config.vocab_size - 1)
    if config.head.kind == "classification" and config.decoder_layers:
        # transformers finds the last token of a text by its id: the last that isn't padding, or the last eos.
        ids = ids if config.special_tokens.pad is None else ids[ids != config.special_tokens.pad][None]
        if config.is_encoder_decoder:
            ids[:, -1] = config.special_tokens.eos[0]
        return ids, None
    return ids, ids if config.is_encoder_decoder else None


def _greedy(theirs: Any, model: Transformer, tokenizer: Tokenizer | None) -> Check:
    ids, source = _inputs(model, tokenizer)
    context = model.config.context_length or ids.shape[1] + NEW_TOKENS
    new = min(NEW_TOKENS, max(1, context // 2))
    ids = ids[:, : max(1, context - new)]
    prompt = ids if source is None else source
    mask = torch.ones_like(prompt)
    # With its cache transformers computes something else of some models: of dynamic angles, of an M2M-100's padding.
    greedy = {"do_sample": False, "num_beams": 1, "use_cache": False, "trust_remote_code": False}
    with _theirs():
        expected = theirs.generate(prompt, attention_mask=mask, max_new_tokens=new, **greedy)
    expected = expected[:, ids.shape[1] if source is None else 1 :]
    got = generate_ids(model, prompt, max_new_tokens=new, beams=1)
    if torch.equal(expected, got):
        return Check("greedy continuation", True, f"{got.shape[1]} tokens")
    there, here = (" ".join(map(str, row[0].tolist())) for row in (expected, got))
    return Check("greedy continuation", False, f"{there} there and {here} here")


def verify_gguf(path: Path, original: Transformer, tokenizer: Tokenizer | None) -> list[Check]:
    """Compare a GGUF file as read here, in float32, with llama.cpp, and its output with the model it was made from.

    The difference that is allowed, relative to the largest value, follows from what llama.cpp rounds: 1e-3 in F32.
    The original, with its tokenizer, is in float32. Raises UserError where llama.cpp is not installed or refuses the
    file.
    """
    model, _ = load(path, dtype=torch.float32)
    formats = {info.type.name for info in Container(path).tensors.values()}
    # llama.cpp looks GELU up in a table of F16, made by the tanh formula.
    gelu = 5e-3 if model.config.feed_forward.activation.startswith("gelu") else 0.0
    tolerance = max(gelu, *(_TOLERANCES.get(name, 1e-1) for name in formats))
    tokens, _ = _inputs(model, tokenizer)
    ids, source = tokens[0].tolist()[: max(1, model.config.max_length - NEW_TOKENS)], None
    if model.config.is_encoder_decoder:
        ids, source = [model.config.special_tokens.decoder_start or 0, *ids[:4]], ids
    checks: list[Check] = []
    with LlamaCpp(path, gives="logits" if model.decoder is not None else "hidden") as theirs, torch.inference_mode():
        if tokenizer is not None:
            checks.append(compare_tokens(theirs.tokens, tokenizer))
        decodes = model.decoder is not None
        name, expected = ("logits", theirs.logits(ids, source)) if decodes else ("hidden states", theirs.hidden(ids))
        checks.append(compare_tensors(name, [expected], [_output(model, ids, source)], tolerance))
        if decodes:
            checks.append(_gguf_greedy(theirs, model, ids, source, tolerance))
        cost = compare_tensors("the model itself", [_output(original, ids, source)], [expected], tolerance)
    if tokenizer is not None and model.decoder is None:
        with LlamaCpp(path, gives="embedding") as theirs:
            vector = normalize(theirs.embedding(tokenizer.encode(SAMPLES[0])), dim=0)
        ours = normalize(embed(model, tokenizer, SAMPLES[:1])[0], dim=0)
        checks.append(compare_tensors("embedding", [vector], [ours], tolerance))
    if formats == {"F32"}:
        return [*checks, replace(cost, equal=_same_weights(model, original))]
    return [*checks, replace(cost, equal=True, is_rounded=True)]


def _same_weights(model: Transformer, original: Transformer) -> bool:
    """Whether the weights of a model of a file in F32 are those of the original, or multiply by the same numbers.

    Norms of 1 + weight are stored as that sum, which has not all bits of the weight.
    """
    weights, is_offset = original.state_dict(), model.config.norm.kind == "rms_offset"
    offsets = {name: 1.0 if is_offset and name.endswith("norm.weight") else 0.0 for name in model.state_dict()}
    # A file's table of positions has no rows before that of the first token.
    pairs = ((part, weights[name][-len(part) :], offsets[name]) for name, part in model.state_dict().items())
    return all(torch.equal(part + offset, weight + offset) for part, weight, offset in pairs)


def _output(model: Transformer, ids: Sequence[int], source: Sequence[int] | None) -> Tensor:
    """Logits [time, vocabulary] of a decoder, hidden states [time, d_model] of an encoder.

    Where nothing is pooled, llama.cpp applies the layers after pooling to every token.
    """
    output = model(torch.tensor([ids]), source=None if source is None else torch.tensor([source]))
    if model.decoder is None or output.logits is None:
        return reduce(lambda hidden, layer: layer(hidden), model.pooling.dense, output.hidden[0])
    return output.logits[0]


def _gguf_greedy(
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
