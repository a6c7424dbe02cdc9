"""Models on disk, in Hugging Face's format and in llama.cpp's."""

from anyformer.checkpoint.adapter_directory import load_adapter, save_adapter
from anyformer.checkpoint.gguf.write import save_gguf
from anyformer.checkpoint.load import inspect, load, load_with_head, torch_dtype
from anyformer.checkpoint.save import check_target, save
from anyformer.checkpoint.sources import weights_fingerprint, write_tensors

__all__ = [
    "check_target",
    "inspect",
    "load",
    "load_adapter",
    "load_with_head",
    "save",
    "save_adapter",
    "save_gguf",
    "torch_dtype",
    "weights_fingerprint",
    "write_tensors",
]
