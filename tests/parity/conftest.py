"""Quiet oracles, and one profile for all proofs: few examples, always the same ones.

`pytest -m "not slow"` proves each statement for one class of every family, another one for each statement, by a quarter
of the examples; statements other than those of `EVERY_FAMILY` for a third of the families, another third for each. The
slow run proves all of them for all classes.
"""

import os
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, settings

from tests.oracle import CHANGED, CHANGED_PRESETS, needs_newer_transformers
from tests.parity.hf_models import ARCHITECTURES

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

torch.set_num_threads(1)


EVERY_FAMILY = ("test_forward", "test_roundtrip")
"""Files with statements that the gate proves for every family: what is computed, and what is on disk."""


def pytest_configure(config: pytest.Config) -> None:
    """Draw fewer examples in the gate."""
    settings.register_profile(
        "parity",
        max_examples=4 if "not slow" in config.option.markexpr else 8,
        deadline=None,
        derandomize=True,
        database=None,
        # A generated model says enough, and shrinking one that fails takes minutes.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=False,
    )
    settings.load_profile("parity")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the proofs that are left to the slow run, and to a newer transformers."""
    proofs: dict[tuple[str, str], dict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in here:
        if any(name in item.name for name in (*CHANGED, *CHANGED_PRESETS)):
            item.add_marker(needs_newer_transformers)
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        architecture = parameters.get("architecture")
        if architecture in ARCHITECTURES:
            name = f"{item.path.stem}.{getattr(item, 'originalname', '')}"
            proofs[name, ARCHITECTURES[architecture]][architecture].append(item)
    for (name, family), classes in proofs.items():
        kept = sorted(classes)[zlib.crc32(name.encode()) % len(classes)]
        if not name.startswith(EVERY_FAMILY) and zlib.crc32(f"{name} {family}".encode()) % 3:
            kept = ""
        for architecture, proven in classes.items():
            for item in proven if architecture != kept else ():
                item.add_marker(pytest.mark.slow)
