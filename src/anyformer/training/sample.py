"""Samples of a model in training."""

import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anyformer.data.batch import IGNORED
from anyformer.generation import encode_prompt, fill, generate, generate_ids, room
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer
from anyformer.training.batcher import Batcher
from anyformer.training.config import RunConfig

_NEW_TOKENS = 160
_EXAMPLES = 3
_TEMPERATURE = 0.8
_WINDOW = 24


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, a part of which the model wrote."""

    before: str
    written: str
    after: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Passages to show, and the subcommands for more, each with its arguments after the run directory, for a shell."""

    passages: Sequence[Passage]
    commands: Sequence[tuple[str, str]]


def take_sample(model: Transformer, tokenizer: Tokenizer, config: RunConfig, batches: Batcher) -> Sample:
    """Continue a prompt, rewrite a source, or fill in masked tokens of the validation text, as the model can."""
    first = next(iter(batches.validation()))
    if first.source is not None:
        return _rewritten(model, tokenizer, first.source[:_EXAMPLES].tolist())
    if model.config.is_encoder_only:
        text = np.where(first.targets == IGNORED, first.tokens, first.targets)
        ids: list[int] = text[~np.isin(text, sorted(tokenizer.special_ids))].tolist()
        return _filled(model, tokenizer, ids, min(_WINDOW, first.tokens.shape[1] - 2), config.seed)
    prompt = "def "
    if config.data:
        text = tokenizer.decode(first.tokens[0, :64].tolist())
        words = [word for word in text.split() if any(character.isalpha() for character in word)]
        prompt = next(iter(words[1:-1] or words), text)  # the first and the last may be cut
    return _continued(model, tokenizer, prompt, config.seed)


def _rewritten(model: Transformer, tokenizer: Tokenizer, sources: list[list[int]]) -> Sample:
    """Sources and the targets that the model generates."""
    passages: list[Passage] = []
    prompt = ""
    new = _new_tokens(model, 0)
    for row in sources:
        # The ids as they are: read from their text, they may be more than fit.
        source = [token for token in row if token != tokenizer.pad]
        written = generate_ids(model, torch.tensor([source], device=model.device), max_new_tokens=new)[0].tolist()
        plain = [token for token in source if token not in model.config.special_tokens.eos]
        before = tokenizer.decode(plain, skip_special=False).strip()
        prompt = tokenizer.decode(plain[:_WINDOW], skip_special=False).strip()
        passages.append(Passage(f"{before}\n    ", tokenizer.decode(written).strip()))
    return Sample(passages, [("generate", shlex.quote(prompt))])


def _continued(model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int) -> Sample:
    ids = encode_prompt(model, tokenizer, prompt) if prompt else []
    text, new = "", _new_tokens(model, len(ids))
    if prompt and new > 0:
        text = generate(model, tokenizer, [ids], max_new_tokens=new, temperature=_TEMPERATURE, top_k=40, seed=seed)[0]
    return Sample([Passage(prompt, text)], [("generate", f"{shlex.quote(prompt)} --temperature {_TEMPERATURE}")])


def _new_tokens(model: Transformer, tokens: int) -> int:
    left = room(model, tokens)
    return _NEW_TOKENS if left is None else min(_NEW_TOKENS, left)


def _filled(model: Transformer, tokenizer: Tokenizer, ids: list[int], length: int, seed: int) -> Sample:
    chance = random.Random(seed)
    passages: list[Passage] = []
    prompt = str(tokenizer.mask_token)
    for _ in range(10 * _EXAMPLES):
        start = chance.randrange(max(1, len(ids) - length))
        if (masked := _mask_one(tokenizer, ids[start : start + length], chance)) is None:
            continue
        before, hidden, after = masked
        prompt = f"{before}{tokenizer.mask_token}{after}"
        best = fill(model, tokenizer, prompt, 3)[0]
        guesses = ", ".join(f"{guess.text.strip()} {guess.probability:.0%}" for guess in best)
        passages.append(Passage(before, f"[{hidden}? {guesses}]", after))
        if len(passages) == _EXAMPLES:
            break
    return Sample(passages, [("fill", shlex.quote(prompt))])


def _mask_one(tokenizer: Tokenizer, ids: list[int], chance: random.Random) -> tuple[str, str, str] | None:
    """The text before a token, the token, and the text after it; None where that would not be read as these tokens."""
    if tokenizer.mask is None or tokenizer.mask_token is None or not ids:
        return None
    position = chance.randrange(len(ids))
    hidden = tokenizer.decode([ids[position]])
    if not any(character.isalnum() for character in hidden):
        return None
    before, after = tokenizer.decode(ids[:position]), tokenizer.decode(ids[position + 1 :])
    masked = [*ids[:position], tokenizer.mask, *ids[position + 1 :]]
    for gap in (" ", ""):
        left, right = f"{before}{gap}" if before else "", f"{gap}{after}" if after else ""
        if tokenizer.encode(f"{left}{tokenizer.mask_token}{right}", special=False) == masked:
            return left, hidden, right
    return None
