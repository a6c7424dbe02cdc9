"""Models on disk, in Hugging Face's format."""

from anyformer.checkpoint.load import load, torch_dtype
from anyformer.checkpoint.save import save, writing

__all__ = ["load", "save", "torch_dtype", "writing"]
