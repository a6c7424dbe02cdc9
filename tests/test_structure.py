"""The tests lie where the source does."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "anyformer", ROOT / "tests"


def test_tests_mirror_the_source() -> None:
    """tests/PACKAGE/test_MODULE.py tests anyformer/PACKAGE/MODULE.py, or the package of that name."""
    elsewhere = {
        # What no single module does.
        *(TESTS / f"test_{what}.py" for what in ("docs", "meta_device", "structure")),
        TESTS / "blocks" / "test_equations.py",
        TESTS / "blocks" / "test_parts.py",
        TESTS / "checkpoint" / "test_version_0_1.py",
        TESTS / "kernels" / "test_training_kernels.py",
        TESTS / "training" / "test_bad_input.py",
        TESTS / "training" / "test_end_to_end.py",
        TESTS / "training" / "test_int8.py",
        # The comparisons with other implementations.
        *(TESTS / "parity").rglob("test_*.py"),
    }
    strays = []
    for path in sorted(set(TESTS.rglob("test_*.py")) - elsewhere):
        module = SOURCE / path.parent.relative_to(TESTS) / path.stem.removeprefix("test_")
        if not module.is_dir() and not module.with_suffix(".py").exists():
            strays.append(str(path.relative_to(ROOT)))
    assert not strays
