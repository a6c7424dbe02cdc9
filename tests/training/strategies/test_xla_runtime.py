"""What is missing for XLA is said."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from anyformer.errors import UserError
from anyformer.training.strategies import xla_runtime


def _installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise PackageNotFoundError

    monkeypatch.setattr(xla_runtime, "version", version)


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
        xla_runtime.start.__wrapped__()


def test_no_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError("No devices of type TPU.\nmore")

    _installed(monkeypatch, torch="2.9.1", torch_xla="2.9.0")
    monkeypatch.setattr(xla_runtime, "import_module", refuse)
    with pytest.raises(UserError, match="No devices of type TPU"):
        xla_runtime.start.__wrapped__()
