"""What a group of processes needs of torch."""

import os
import subprocess
import sys
from pathlib import Path

EXCHANGE = """
import json, sys, torch
import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace_json
from anyformer.training.strategies.group import Group

group = Group("cpu")
for _ in range(3):
    dist.all_reduce(torch.zeros(4))
print(len(json.loads(_dump_fr_trace_json(True, False)).get("entries", [])))
group.close()
"""


def recorded(folder: Path, **variables: str) -> int:
    """Exchanges that a process of its own still knows after three of them."""
    store = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    env = {name: value for name, value in os.environ.items() if name != "TORCH_FR_BUFFER_SIZE"}
    command = [sys.executable, "-W", "ignore", "-c", EXCHANGE]
    return int(subprocess.check_output(command, cwd=folder, env={**env, **store, **variables}, text=True))


def test_exchanges_between_processors_are_not_recorded_unless_asked_for(tmp_path: Path) -> None:
    assert recorded(tmp_path) == 0
    assert recorded(tmp_path, TORCH_FR_BUFFER_SIZE="10") == 3
