"""Types of the fields that several parts of a config share, with the values that they take."""

from typing import Annotated

from anyformer.schema import Rule

Count = Annotated[int, Rule(lambda number: number >= 1, "must be positive")]
Size = Annotated[int, Rule(lambda number: number >= 0, "can't be negative")]
Rate = Annotated[float, Rule(lambda rate: 0 <= rate < 1, "is a dropout rate, in [0, 1)")]
Stretch = Annotated[float, Rule(lambda number: 1e-6 <= number <= 1e6, "is a positive number, from 1e-6 to 1e6")]
"""Numbers by which positions are scaled: ten thousand times those of published models, and no overflow."""
Theta = Annotated[float, Rule(lambda theta: 1 < theta <= 1e12, "lies above 1, up to 1e12")]
Factor = Annotated[float, Rule(lambda number: 0 < abs(number) <= 1e6, "is a number other than 0, up to 1e6")]
"""Factors on activations: ten thousand times those of published models, and no overflow."""
Softcap = Annotated[float, Rule(lambda number: 1e-3 <= number <= 1e6, "is a positive number, from 1e-3 to 1e6")]
