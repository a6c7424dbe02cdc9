"""An encoder in compiled code: whole texts, in products of 8-bit integers (`kernels/cpu/encode_texts.cpp`).

Each token's vector is rounded to 8 bits by its largest number, and so is each row of a weight: of two roundings one
after the other, where the weight has a scale for every group of a row.
"""

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import Structure, c_int64, c_void_p
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from anyformer.blocks.linear import Linear, no_adapter_acts
from anyformer.blocks.position import LearnedPosition, PositionalEncoding, SinusoidalPosition
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.generation.compiled_layers import KNOWN, CompiledLayers, UnsupportedModelError, unsupported
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Library, is_intercepted
from anyformer.model import Transformer

LIBRARY = Library(
    "encode_texts",
    "encoder with quantized weights",
    "avx512bf16",
    supported=(c_int64,),
    packed_size=(c_int64, c_int64, c_int64),
    pack=(None, c_void_p),
    workspace_size=(c_int64, c_void_p, c_void_p),
    encode_texts=(None, c_void_p, c_void_p),
)
_POSITIONS = (PositionalEncoding, SinusoidalPosition, LearnedPosition)
_UNKNOWN = (
    *("attention.window", "attention.qk_norm", "attention.softcap", "attention.sinks"),
    *("feed_forward.limit", "feed_forward.up_offset", "feed_forward.experts", "other_layers"),
)
"""Fields that decode_step.cpp computes by, and encode_texts.cpp does not."""
_KNOWN = {name for name in KNOWN if not name.startswith(_UNKNOWN)} | {"embedding", "head"}
_BLOCK_ROWS = 256
"""Tokens that are computed together, of several texts: a core's second-level cache has room for their activations."""
_MIN_ROWS, _LAST_ROWS = 32, 96
"""Tokens of the smallest blocks, and of the last ones of many, so that no thread waits long for another."""
_HEAD_DIM_MULTIPLE = 32
_BIAS_PADDING = 31
"""Numbers behind the bias of the farthest distance, which are read for keys up to a multiple of 32."""

_packed = WeakTensorKeyDictionary()
"""Packed weights, by their integers: a byte more for each weight."""


class CompiledEncoder(CompiledLayers):
    """The encoder of a quantized model as a table of pointers, with its weights packed anew.

    Raises:
        UnsupportedModelError: Compiled code cannot run the model, or would be slower.
    """

    def __init__(self, model: Transformer) -> None:
        stack = model.encoder
        if stack is None or model.device.type != "cpu" or is_intercepted():
            raise UnsupportedModelError("no encoder on a CPU")
        if stack.head_dim % _HEAD_DIM_MULTIPLE:
            raise UnsupportedModelError("heads whose width is no multiple of 32")
        library: Any = LIBRARY.get()
        if library is None or not library.supported():
            raise UnsupportedModelError("a processor without products of integers")
        if type(stack.position) not in _POSITIONS or model.config.norm.is_parallel:
            raise unsupported("position.kind" if type(stack.position) not in _POSITIONS else "norm.placement")
        self.stack = stack
        super().__init__(model, stack, _KNOWN)
        self.table = structs.Decoder(**self._stack)
        self._workspace = torch.empty(0, dtype=torch.uint8)

    @override
    def _matrix(self, module: nn.Module | None, bias: Tensor | None = None) -> Structure:
        """The weight of a linear layer, with one scale for each row."""
        if module is None:
            return structs.Matrix()
        described = super()._matrix(module, bias)
        if described.adapted and not no_adapter_acts():
            raise UnsupportedModelError("adapters")
        if type(module) is not Linear or not isinstance(module.weight, QuantizedMatrix):
            raise UnsupportedModelError("weights in floating point")
        packed = _pack(module.weight)
        self._kept.append(packed)
        described.weights, described.dtype = packed.data_ptr(), structs.INT8
        return described

    def __call__(
        self, tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"] | None
    ) -> Float[Tensor, "batch time d_model"]:
        """The encoder's output; undefined for padding."""
        vectors = self.model.token_embedding(tokens)
        positions = self.stack.positions(tokens, mask, None, None, None, None)
        layout = positions.layout
        hidden = self.stack.embed(vectors, tokens, None, positions, None).flatten(0, 1).float().contiguous()
        lengths = [tokens.shape[1]] * len(tokens) if mask is None else cast("list[int]", mask.sum(dim=1).tolist())
        starts = torch.tensor([0, *lengths]).cumsum(0)
        threads = torch.get_num_threads()
        blocks = torch.tensor(list(_blocks(lengths, threads)))
        library: Any = LIBRARY.get()
        bias = self._bias(longest := max(lengths))
        stride = None if bias is None else bias.shape[1]
        sizes = {"num_blocks": len(blocks) - 1, "num_threads": threads, "longest": longest, "bias_stride": stride}
        texts = structs.make(structs.Texts, starts=starts, blocks=blocks, hidden_states=hidden, bias=bias, **sizes)
        decoder = ctypes.addressof(self.table)
        size: int = library.workspace_size(decoder, ctypes.addressof(texts))
        if self._workspace.numel() < size:
            self._workspace = torch.empty(size, dtype=torch.uint8)
        texts.workspace = self._workspace.data_ptr()
        library.encode_texts(decoder, ctypes.addressof(texts))
        return layout.scatter(hidden[None]) if layout.packed is not None else hidden.view(*tokens.shape, -1)

    def _bias(self, longest: int) -> Float[Tensor, "heads distances"] | None:
        """The bias of each distance in texts of so many tokens, and what is read behind it; None: there is none."""
        keys = torch.arange(2 * longest - 1)[None]
        bias = self.stack.position.bias(keys[:, longest - 1 : longest], keys)
        return None if bias is None else F.pad(bias[0, :, 0].float(), (0, _BIAS_PADDING)).contiguous()


def _pack(weight: QuantizedMatrix) -> Tensor:
    """The weight with a scale for each row, as encode_texts.cpp reads it; made once."""
    if weight.integers not in _packed:
        library: Any = LIBRARY.get()
        rows, columns = weight.shape
        packed = torch.empty(library.packed_size(rows, columns), dtype=torch.uint8)
        sizes = {"columns": rows, "depth": columns, "num_threads": torch.get_num_threads()}
        matrix = weight.dequantize(torch.float32)
        arguments = structs.make(structs.MatmulArgs, right=matrix, out=packed, **sizes)
        library.pack(ctypes.addressof(arguments))
        _packed[weight.integers] = packed
    return _packed[weight.integers]


def _blocks(lengths: Sequence[int], threads: int) -> Iterator[int]:
    """The first of the texts of each block of neighbors, the smaller ones last; and the number of texts."""
    left = sum(lengths)
    most = max(_MIN_ROWS, min(_BLOCK_ROWS, left // threads))
    total = room = 0
    for index, length in enumerate(lengths):
        if index == 0 or total + length > room:
            yield index
            total, room = 0, min(most, max(_LAST_ROWS, left // (2 * threads)))
        total += length
        left -= length
    yield len(lengths)
