"""`anyformer env`: what computes here, for a report of a problem."""

import json
import os
import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anyformer import __version__
from anyformer.cli.options import parse
from anyformer.native import levels
from anyformer.terminal import write

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "transformers")


@dataclass(frozen=True)
class EnvOptions:
    """Show versions, the processor and what of it is used, which backend computes each operation, memory and GPUs.

    Examples:
        anyformer env
        anyformer env --json
    """

    json: bool = False
    """Print one JSON object."""


def run(argv: list[str]) -> int:
    """Print what there is."""
    options = parse(EnvOptions, argv, "env")

    found = environment()
    if options.json:
        write(json.dumps(found, indent=2))
        return 0
    operations = found.pop("operations")
    for name, value in found.items():
        write(f"{name:<24}{', '.join(map(str, value)) or 'none' if isinstance(value, list) else value}")
    write("")
    for each in operations:
        write(f"{each['operation']:<34}{each['backend']}{each['reason'] and ': ' + each['reason']}")
    return 0


def environment() -> dict[str, Any]:
    """Versions, the processor and its level, threads, memory and GPUs; and the backend of each operation."""
    import torch

    from anyformer.kernels.cpu.library import LIBRARIES
    from anyformer.plan.devices import find_device

    import_module("anyformer.generation.compiled_encoder")  # declares its library, and that of the decoder
    level, offered = levels.level() if levels.enabled() else None, levels.usable()
    found: dict[str, Any] = {"anyformer": __version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    found |= {
        "system": platform.platform(),
        "processor": levels.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "available memory, bytes": int(find_device("cpu").memory),
        "GPUs": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "levels offered": [each.name for each in offered],
        "level in use": level.name if level is not None else "none",
        "libraries": str(levels.LIBRARIES / level.name) if level is not None else "none",
    }
    found["operations"] = [
        {
            "operation": each.operation,
            "backend": "torch" if (reason := each.absence()) else f"{each.name}.cpp",
            "reason": reason or "",
        }
        for each in sorted(LIBRARIES, key=lambda each: each.operation)
    ]
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
