"""The model as engines call it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from anyformer.model import Transformer


class LossAlone(nn.Module):
    """A model whose only output is its loss, so that an engine that watches outputs sees what has a part in it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        """See `Transformer.forward`."""
        # Not model(...): DeepSpeed watches the outputs of every module that is called, and can't look into this one's.
        loss = self.model.forward(**inputs).loss
        if loss is None:
            raise ValueError("a loss needs targets")
        return loss
