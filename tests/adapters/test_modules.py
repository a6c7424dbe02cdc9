"""The layers of a model that adapters attach to."""

from __future__ import annotations

from tests.generation.models import WRITERS, build

from anyformer.adapters.modules import targets


def test_layers_are_in_the_order_of_the_model() -> None:
    """Not in that of a set, which each process has its own of: adapters are drawn in it."""
    model = build(WRITERS["grouped"])
    order = {module: place for place, module in enumerate(model.modules())}
    places = [order[part] for target in targets(model).values() for part in target.modules]
    assert len(places) > 10
    assert places == sorted(places)
