"""Train a stack with and without torch.compile; print the largest difference, and the operations of the graph.

A program of its own, for torch.compile can't look through the checks of shapes that tests run with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from tests.kernels.stand_ins import use_stand_ins


def main(name: str) -> None:
    use_stand_ins(pytest.MonkeyPatch())
    torch.manual_seed(0)
    config = af.preset(
        name, vocab_size=61, d_model=64, decoder_layers=1, attention={"heads": 4, "kv_heads": None, "dropout": 0.0}
    )
    config = config.replace(dropout=0.0, embedding={"dropout": 0.0}, feed_forward={"width": 96, "dropout": 0.0})
    model = af.build(config).train()
    tokens, graphs = torch.randint(61, (2, 32)), set[str]()

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def gradients() -> list[Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(tokens, targets=tokens, return_logits=False).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    eager = gradients()
    model.decoder.compile(backend=look)
    compiled = gradients()
    off = max(float((a - b).norm() / max(float(b.norm()), 1e-6)) for a, b in zip(compiled, eager, strict=True))
    print(json.dumps({"off": off, "operations": sorted(graphs)}))


if __name__ == "__main__":
    main(sys.argv[1])
