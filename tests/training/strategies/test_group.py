"""What a group of processes needs of torch."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from anyformer.errors import UserError
from anyformer.training.strategies import group as module
from anyformer.training.strategies.group import Group

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
    printed = subprocess.check_output(command, cwd=folder, env={**env, **store, **variables}, text=True)
    return int(printed.splitlines()[-1])  # Gloo prints, too


def test_exchanges_between_processors_are_not_recorded_unless_asked_for(tmp_path: Path) -> None:
    assert recorded(tmp_path) == 0
    assert recorded(tmp_path, TORCH_FR_BUFFER_SIZE="10") == 3


@pytest.fixture
def _second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_second_of_two")
def test_tpus_send_by_torch_tpu_and_their_hosts_by_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[str]()

    def begin(backends: str, **_: Any) -> None:
        begun.append(backends)

    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setattr(dist, "get_default_backend_for_device", "{}_dist".format)  # torch-tpu makes it so
    monkeypatch.setattr(dist, "init_process_group", begin)
    group = Group("tpu")
    assert (group.backend, begun) == ("tpu_dist", ["cpu:gloo,tpu:tpu_dist"])


@pytest.mark.usefixtures("_second_of_two")
@pytest.mark.parametrize(
    ("device", "says"), [("tpu", "needs torch-tpu, which is not installed"), ("mps", "can't train together on mps")]
)
def test_devices_that_can_not_train_together(device: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Group(device)


def _installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise PackageNotFoundError

    monkeypatch.setattr(module, "version", version)


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"torch": "2.9.1"}, "torch_xla is missing"),
        ({"torch": "2.13.0", "torch_xla": "2.9.0"}, r"torch is 2\.13\.0.*pip install 'torch==2\.9\.\*'"),
        ({"torch": "2.9.1", "torch_xla": "2.8.1"}, r"torch_xla is 2\.8\.1"),
    ],
)
def test_another_version_is_declined(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], says: str) -> None:
    _installed(monkeypatch, **versions)
    with pytest.raises(UserError, match=says):
        module.start_xla.__wrapped__()


def test_no_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError("No devices of type TPU.\nmore")

    _installed(monkeypatch, torch="2.9.1", torch_xla="2.9.0")
    monkeypatch.setattr(module, "import_module", refuse)
    with pytest.raises(UserError, match="No devices of type TPU"):
        module.start_xla.__wrapped__()
