"""The C library's heap: rules that hold for any order of allocations."""

from hypothesis import given
from hypothesis import strategies as st

from anyformer.compare.plan.heap import OBJECTS, heap_size


def test_a_heap_without_tensors_is_empty() -> None:
    assert heap_size([]) == 0


def test_a_tensor_takes_its_bytes_and_little_more() -> None:
    size = heap_size([(0, 1 << 20)])
    assert (1 << 20) <= size <= (1 << 20) + 2 * sum(OBJECTS) + 1024


@given(st.lists(st.tuples(st.integers(1, 1 << 22), st.integers(0, 5)), max_size=40))
def test_it_holds_what_is_alive_and_no_more_than_all_that_ever_was(made: list[tuple[int, int]]) -> None:
    events: list[tuple[int, int]] = []
    alive: list[tuple[int, int]] = []
    most = 0
    for key, (size, released) in enumerate(made):
        events.append((key, size))
        alive.append((key, size))
        most = max(most, sum(each for _, each in alive))
        for _ in range(min(released, len(alive)) // 2):
            events.append((alive.pop(0)[0], 0))
    everything = sum(size + 2 * sum(OBJECTS) + 1024 for size, _ in made)
    assert most <= heap_size(events) <= everything


def test_holes_are_used_again() -> None:
    events = [event for key in range(50) for event in ((key, 1 << 20), (key, 0))]
    assert heap_size(events) < 8 * (1 << 20)
