"""The arguments of compiled functions: the structures and constants that structs.h declares, for ctypes.

Each structure is an attribute of this module, and so is each constant: ``Matrix``, ``INT8``.
"""

import re
from ctypes import Structure, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def _declared(header: str) -> dict[str, Any]:
    """The structures and constants of a C++ header, whose fields are all 64 bits wide, by name."""
    constants: dict[str, Any] = {}
    types: dict[str, Any] = {"int64_t": c_int64, "double": c_double}
    source = re.sub("//.*", "", header)
    for keyword, name, body in re.findall(r"(enum|struct) (\w+)[^;{]*\{(.*?)\};", source, re.DOTALL):
        if keyword == "enum":
            types[name] = c_int64
            constants |= {constant: value for value, constant in enumerate(re.findall(r"\w+", body))}
            continue
        fields: list[tuple[str, Any]] = []
        for kind, declared in re.findall(r"(?:const )?(\w+)([^;]*);", body):
            for field in declared.split(","):
                fields.append((field.strip(" *"), c_void_p if "*" in field else types[kind]))
        types[name] = type(name, (Structure,), {"_fields_": fields, "types": dict(fields)})
    return constants | types


_DECLARED = _declared((Path(__file__).parent / "structs.h").read_text())
globals().update(_DECLARED)  # hundreds of them are made for a model, and `__getattr__` would be called for each
DTYPES: dict[torch.dtype, int] = {torch.float32: _DECLARED["FLOAT32"], torch.bfloat16: _DECLARED["BFLOAT16"]}


def __getattr__(name: str) -> Any:
    raise AttributeError(f"structs.h declares no {name}")


def make(structure: Any, **fields: Any) -> Structure:
    """A structure with these fields, null where they are None; whoever uses it keeps the tensors that it points to."""
    made = structure()
    for name, value in fields.items():
        if value is not None:
            setattr(made, name, _CONVERTERS[structure.types[name]](value) if isinstance(value, Tensor) else value)
    return made


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor; of one without memory a number that is not 0, which stands for no tensor."""
    return None if tensor is None else 64 if isinstance(tensor, FakeTensor) else tensor.data_ptr()


def view(tensor: Tensor) -> Structure:
    """A tensor [batch, heads, time, head_dim]."""
    return _DECLARED["TensorView"](address(tensor), *tensor.stride()[:3])


def operand(tensor: Tensor) -> Structure:
    """A matrix, as it is or transposed."""
    rows, columns = tensor.stride()
    transposed = columns != 1
    return _DECLARED["MatmulOperand"](
        address(tensor), DTYPES[tensor.dtype], columns if transposed else rows, transposed
    )


_CONVERTERS: dict[Any, Any] = {c_void_p: address, _DECLARED["TensorView"]: view, _DECLARED["MatmulOperand"]: operand}
"""The functions that describe a tensor, by the type of the field."""
