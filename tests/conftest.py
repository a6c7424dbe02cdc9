"""Every shape that an annotation promises is checked while the tests run, and no test is hurried.

`pytest -m "not slow"` draws a tenth of the examples of every test that hypothesis draws them for. All of them are
drawn by `pytest -m slow`, which runs these tests too, and by pytest without `-m`.
"""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

from tests import examples
from tests.browser import browse, chromium  # noqa: F401
from tests.forked import Forks, forks

# As the command line does: tests share their cores with whatever else runs.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# A number of threads that is adapted to other programs would change results in their last bits. The workers of
# pytest-xdist, and what they start, share the cores.
_cores = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
os.environ["OMP_NUM_THREADS"] = str(max(1, _cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
# And tokens are not put into the user's own cache. The workers of pytest-xdist share one: code is compiled once.
_cache = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="anyformer-cache-", ignore_cleanup_errors=True)
    os.environ["ANYFORMER_CACHE"] = _cache.name

# A shell starts background jobs with Ctrl-C ignored, nohup what it starts with SIGHUP ignored, and every child would
# inherit that. A handler isn't inherited: the programs that the tests start listen to them, while the tests themselves
# ignore them as before.
for name in ("SIGINT", "SIGHUP"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# torch, which it imports, reads the variables above.
from tests import shapes  # noqa: E402

shapes.install(["anyformer.blocks", "anyformer.model", "anyformer.generation"])

# A busy machine is slow at times, and a first call may have to import or to compile.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="session")
def _float32_is_as_fast() -> Iterator[None]:
    """No result depends on the dtype that this machine is fastest in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.fastest_dtype.measure", lambda products, dtypes, **_: dict.fromkeys(dtypes, 1.0))
        yield


@pytest.fixture(scope="session")
def programs() -> Iterator[Forks]:
    """What starts programs that have imported the library already."""
    modules = ("anyformer.cli.chat", "anyformer.cli.train", "anyformer.training.run", "anyformer.runs.report")
    with forks(*modules) as server:
        yield server


LONG = (
    *("training/test_strategies", "finetuning/test_resume", "training/test_checkpoints", "cli/test_every_command"),
    *(
        "kernels/cpu/test_library",
        "native/test_compiler",
        "learn/test_eject",
        "test_docs",
        "test_site",
        "compare/test_compare",
        "plan/test_dry_run",
    ),
    *("training/strategies/test_base", "training/test_int8", "finetuning/test_end_to_end", "compare/tasks/test_tasks"),
    *("training/test_end_to_end", "generation/test_batch_job", "learn/explain/test_description", "test_dtensor"),
    *("test_hostile_folder", "test_planted_links", "finetuning/test_report", "fuzz/test_fuzz"),
)
"""Files that take longest. They come first, so that no worker is left alone with one at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Called by pytest-xdist: a file's tests go to one worker, for some have fixtures that take half a minute."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # else files with few tests come last
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Called when all tests are known."""
    if hasattr(config, "workerinput"):
        names = {f"tests/{name}.py" for name in LONG}
        items.sort(key=lambda item: item.nodeid.partition("::")[0] not in names)


def pytest_configure(config: pytest.Config) -> None:
    """Called before tests are imported."""
    examples.IN_GATE = "not slow" in config.getoption("markexpr")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Called once for each test function, before it is selected."""
    test = metafunc.function
    if not is_hypothesis_test(test):
        return
    if examples.IN_GATE:
        full = test._hypothesis_internal_use_settings
        test._hypothesis_internal_use_settings = settings(full, max_examples=max(2, full.max_examples // 10))
    else:
        pytest.mark.slow(test)


def pytest_collection_finish() -> None:
    """Called when all tests are imported: the garbage collector needs not look through them again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    if _cache is not None:
        _cache.cleanup()
