"""Drawings of models, from their configs: the same places in every drawing, and in color only what differs.

facts    what a drawing says of a model, and at which place
panel    models beside each other: their costs, and where they differ
drawing  where everything is drawn, and the same in words (stack: the blocks of a stack, thumbnails of masks)
lesson   pictures of a computation: products of matrices, the residual stream
svg      shapes, how they look, and how wide a line of text is
"""

from anyformer.learn.diagram.drawing import diagram, draw
from anyformer.learn.diagram.lesson import Matrix, matrices, stream
from anyformer.learn.diagram.panel import Panel, lit, panels, undrawn

__all__ = ["Matrix", "Panel", "diagram", "draw", "lit", "matrices", "panels", "stream", "undrawn"]
