"""Bounds of a params field, given in its annotation: `batch_size: Count`, `momentum: Fraction`."""

from dataclasses import dataclass, fields
from math import inf, isfinite
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Bounds:
    """Interval of the valid finite numbers of a field, or of every number in a list."""

    at_least: float = -inf
    at_most: float = inf
    above: float = -inf
    below: float = inf

    def allow(self, value: float) -> bool:
        """Return True if a finite number lies in the interval."""
        return self.at_least <= value <= self.at_most and self.above < value < self.below and isfinite(value)

    def __str__(self) -> str:
        """The limits in words: `at least 0 and at most 1`."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return " and ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in limits.items() if isfinite(v))


Count = Annotated[int, Bounds(at_least=1)]
CountOrZero = Annotated[int, Bounds(at_least=0)]
Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(at_least=0)]
Fraction = Annotated[float, Bounds(at_least=0, at_most=1)]
