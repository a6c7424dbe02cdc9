"""The number of threads is adapted to other programs, by clocks that a test turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.kernels.threads import AdaptiveThreads, adaptive_threads


class Machine:
    """Cores, other programs' threads on them, and a loop whose threads wait for each other."""

    def __init__(self, cores: int) -> None:
        self.cores, self.others, self.now, self.cpu = cores, 0, 0.0, 0.0
        self.applied: list[int] = []
        self.threads = AdaptiveThreads(cores, self.applied.append, lambda: self.now, lambda: self.cpu)

    def speed(self, threads: int) -> float:
        """Steps a second: each thread has its share of the cores, and all wait for one that has none."""
        share = min(1.0, self.cores / (threads + self.others))
        return 100 * threads * share * (1.0 if share == 1 else 1 / threads**2)

    def run(self, seconds: float) -> float:
        """Steps a second over some time."""
        steps, end = 0, self.now + seconds
        begin = self.now
        while self.now < end:
            count = self.threads.count
            self.threads.begin()
            taken = 1 / self.speed(count)
            self.now += taken
            self.cpu += taken * count * min(1.0, self.cores / (count + self.others))
            self.threads.end(1)
            self.now += 0.01  # a pause is no work
            steps += 1
        return steps / (self.now - begin)


@pytest.fixture(autouse=True)
def _not_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@settings(max_examples=25)
@given(cores=st.integers(1, 64), seconds=st.floats(1, 30))
def test_alone_nothing_changes(cores: int, seconds: float) -> None:
    machine = Machine(cores)
    machine.run(seconds)
    assert machine.threads.count == cores
    assert machine.applied == []


@settings(max_examples=25)
@given(cores=st.integers(2, 8), others=st.integers(1, 3))
def test_fewer_threads_beside_other_programs_and_all_after_them(cores: int, others: int) -> None:
    machine = Machine(cores)
    machine.run(2)
    machine.others = others * cores
    slow = machine.speed(cores)
    machine.run(10)
    assert machine.run(20) > 1.2 * slow  # trials of more threads among them
    assert machine.threads.count < cores
    machine.others = 0
    machine.run(60)
    assert machine.threads.count == cores


def test_groups_of_threads_wait_for_a_core_as_all_of_them_do() -> None:
    """Two groups of one thread are two threads, so while each has half of a core nobody tries larger groups."""
    machine = Machine(2)
    threads = machine.threads
    threads._apply = lambda count: machine.applied.append(count) or 2
    machine.others = 2

    def run(seconds: float) -> None:
        end = machine.now + seconds
        while machine.now < end:
            share = min(1.0, 2 / (2 + machine.others))
            taken = 0.01 / share * (1.0 if share == 1 or threads.count == 1 else 2.0)
            threads.begin()
            machine.now += taken
            machine.cpu += 2 * share * taken
            threads.end(1)

    run(20)
    assert machine.applied == [1]
    machine.others = 0
    run(60)
    assert machine.applied[:2] == [1, 2]


def test_threads_that_gain_nothing_by_it_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(2)
    machine.others = 2
    monkeypatch.setattr(machine, "speed", lambda threads: 50.0 * threads)
    alone = 100.0 / (1 + 100.0 * 0.01)
    assert machine.run(60) > 0.95 * alone
    assert machine.threads.count == 2
    machine.threads.close()
    assert machine.applied[-1] == 2


def test_fewer_threads_that_are_as_fast_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(2)
    machine.others = 2
    monkeypatch.setattr(machine, "speed", lambda threads: 50.0 + threads / 2)
    machine.run(10)
    assert machine.threads.count == 1


def test_a_number_that_somebody_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine = Machine(2)
    machine.others = 4
    machine.run(20)
    assert machine.applied == []


def test_the_first_number_comes_back() -> None:
    machine = Machine(2)
    machine.others = 2
    machine.run(5)
    assert machine.threads.count == 1
    machine.threads.close()
    assert machine.applied[-1] == machine.threads.count == 2


def test_a_loop_begins_with_the_number_that_the_latest_one_ended_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.kernels.threads._latest", [])
    applied: list[int] = []
    with adaptive_threads(8, applied.append) as first:
        first._set(2)
    with adaptive_threads(8, applied.append) as second:
        assert second.count == 2
    with adaptive_threads(1, applied.append) as alone:
        assert alone.count == 1
    with adaptive_threads(8, applied.append) as last:
        assert last.count == 2  # one that has no choice says nothing
    assert applied == [2, 8, 2, 8, 2, 8]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with adaptive_threads(8, applied.append) as chosen:
        assert chosen.count == 8
