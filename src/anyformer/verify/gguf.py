"""Comparisons of a GGUF file here and in llama.cpp: token ids, logits or hidden states, text, embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from anyformer.checkpoint import load
from anyformer.checkpoint.gguf.container import Container
from anyformer.generation import embed
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.prompt import common_prefix
from anyformer.verify.check import NEW_TOKENS, SAMPLES, Check, compare_tensors, compare_tokens
from anyformer.verify.llama_cpp import LlamaCpp

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
