"""Anchor sizes from a dataset's objects, by k-means."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 100


def cluster(sides: NDArray[np.float64], layout: Sequence[Sequence[float]]) -> list[list[float]]:
    """Sizes in the layout of a recipe's: as many levels, and as many sizes on each.

    * One map, or the same sizes on all: a cluster is a size.
    * A pyramid: a cluster is the first size of a level, the finest level the smallest; its other sizes keep
      their proportion to the first.

    Args:
        sides: Roots of the objects' areas, in pixels, all above 0.
        layout: The recipe's `anchor_sizes`.
    """
    if all(list(level) == list(layout[0]) for level in layout):
        return [k_means(sides, len(layout[0]))] * len(layout)
    firsts = k_means(sides, len(layout))
    return [[first * size / level[0] for size in level] for first, level in zip(firsts, layout, strict=True)]


def k_means(sides: NDArray[np.float64], count: int) -> list[float]:
    """Centres, rising, of Lloyd's k-means over the logarithm, started at quantiles.

    Two squares of one centre and sides s < t have the IoU (s / t)², so that a distance of logarithms is one
    of IoUs.
    """
    values = np.sort(np.log(sides))
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(ROUNDS):
        cuts = np.searchsorted(values, (centres[:-1] + centres[1:]) / 2)
        parts = np.split(values, cuts)
        moved = np.array([part.mean() if len(part) else c for part, c in zip(parts, centres, strict=True)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    sizes: list[float] = np.exp(centres).tolist()
    return sizes
