"""Models on the command line: loading one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from anyformer.cli.options import Positional

if TYPE_CHECKING:
    from anyformer.model import Transformer
    from anyformer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Loading the model."""

    device: str | None = None
    """Where to compute, such as cuda (default: the CPU)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The dtype of the weights, or of the activations with --quantize (default: as stored)."""
    quantize: Literal["int8", "int4"] | None = None
    """Quantize the matrices to 8 or 4 bits while they are read."""
    allow_pickle: bool = False
    """Read pytorch_model.bin where there is no safetensors file."""
    adapter: Annotated[tuple[str, ...], "DIR[:WEIGHT]"] = ()
    """Low-rank adapters to add to the model, in PEFT's format or in mlx-lm's."""

    def load(self, path_or_hub_id: str) -> tuple[Transformer, Tokenizer | None]:
        """The model and its tokenizer, see `anyformer.load`."""
        from anyformer.adapters import merge
        from anyformer.checkpoint import load
        from anyformer.quantization import bits_of

        model, tokenizer = load(
            path_or_hub_id,
            self.dtype,
            self.device,
            quantize=self.quantize,
            allow_pickle=self.allow_pickle,
            adapter=self.adapter,
        )
        # In the weights an adapter costs nothing; integers stay as they are, and it stays beside them.
        return (merge(model) if model.adapter_configs and bits_of(model) is None else model), tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LoadOptions):
    """A model, and how it is loaded."""

    model: Positional[str]
    """A model directory, a run directory, a GGUF file, or a hub id."""

    def load_model(self) -> tuple[Transformer, Tokenizer | None]:
        """The model and its tokenizer."""
        return self.load(self.model)
