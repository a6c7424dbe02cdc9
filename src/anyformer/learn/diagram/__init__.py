"""Drawings of models, from their configs: the same places in every drawing, and in color only what differs.

facts    what a drawing says of a model, and at which place
panel    models beside each other: their costs, and where they differ
drawing  the whole drawing, and its description in words
stack    the blocks of a stack, thumbnails of masks; ghosts of what a model lacks, and color
lesson   pictures of a computation: products of matrices, the residual stream
svg      shapes, and the width of a line of text; picture.css, their style
"""

from anyformer.learn.diagram.drawing import diagram, draw
from anyformer.learn.diagram.lesson import Matrix, matrices, stream
from anyformer.learn.diagram.panel import Panel, differences, panels, undrawn

__all__ = ["Matrix", "Panel", "diagram", "differences", "draw", "matrices", "panels", "stream", "undrawn"]
