"""Drawings of models, from their configs: the same places in every drawing, and in color only what differs.

facts    what a drawing says of a model, and at which place
panel    models beside each other: their costs, and where they differ
drawing  where everything is drawn (stack: the blocks of a stack; masks: thumbnails of attention masks)
lesson   pictures of a computation: products of matrices, the residual stream
svg      shapes, and how they look; text: how wide a line is
"""

from anyformer.learn.diagram.drawing import diagram, draw
from anyformer.learn.diagram.lesson import Matrix, matrices, stream
from anyformer.learn.diagram.panel import Panel, lit, panels, undrawn

__all__ = ["Matrix", "Panel", "diagram", "draw", "lit", "matrices", "panels", "stream", "undrawn"]
