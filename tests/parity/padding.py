"""Rows of unequal lengths, and what fills them up to a batch."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.parity.model_spec import CONTEXT, ModelSpec


def pad(rows: list[Tensor], side: str, filler: Tensor) -> Tensor:
    """Stack rows of unequal length, with tokens of `filler` where nothing is."""
    longest = max(map(len, rows))
    padded = ((row, filler[: longest - len(row)]) for row in rows)
    return torch.stack([torch.cat(parts if side == "right" else parts[::-1]) for parts in padded])


def draw_rows(data: st.DataObject, vocab: int, count: int, longest: int) -> list[Tensor]:
    """Random texts of random lengths."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    return [torch.randint(vocab, (data.draw(st.integers(1, longest)),), generator=generator) for _ in range(count)]


def draw_filler(data: st.DataObject, drawn: ModelSpec, vocab: int) -> Tensor:
    """What stands where nothing is: any token, unless the model tells padding by it."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    if drawn.family.endswith(("roberta", "mpnet", "m2m_100")):
        return torch.full((CONTEXT,), drawn.options["pad_token_id"])
    return torch.randint(vocab, (CONTEXT,), generator=generator)
