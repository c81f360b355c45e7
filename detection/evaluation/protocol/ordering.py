"""Sorting and pairing millions of rows in parts that stay in the processor's cache.

Memory is what a large split waits for: what is done to all of its rows at once reads them from outside the
cache, and its temporary arrays come from the system anew each time.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 1 << 18
"""Pairs or detections looked at in one go: they stay in the processor's cache, whatever the split's size."""


def runs(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """[G + 1] where each run of equal keys begins, and the end of the last."""
    other = keys[1:] != keys[:-1]
    return np.concatenate([np.arange(min(len(keys), 1)), np.flatnonzero(other) + 1, [len(keys)]])


def blocks(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Groups of rows put together: from which to before which, with about `BLOCK_SIZE` rows in each.

    Args:
        starts: [G + 1] the row where each group begins, and the end of the last.
    """
    cuts = np.searchsorted(starts, np.arange(BLOCK_SIZE, starts[-1], BLOCK_SIZE))
    return pairwise(np.unique([0, *cuts.tolist(), len(starts) - 1]).tolist())


def ranges(start: NDArray[np.int64], count: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """All pairs `(i, start[i] + 0 … count[i] - 1)`, in order, in blocks of about `BLOCK_SIZE`."""
    total = np.zeros(len(count) + 1, dtype=np.int64)
    np.cumsum(count, out=total[1:])
    cuts = np.searchsorted(total, np.arange(BLOCK_SIZE, total[-1], BLOCK_SIZE), side="left")
    edges = np.unique(np.concatenate([[0], cuts, [len(count)]]))
    for low, high in pairwise(edges.tolist()) if len(edges) > 1 else [(0, 0)]:
        mine = count[low:high]
        left = np.repeat(np.arange(low, high), mine)
        within = np.arange(len(left)) - np.repeat(total[low:high] - total[low], mine)
        yield left, start[left] + within


def best_first(keys: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """[D] rows by rising key, the best score first, equal ones as they came: `np.lexsort((-scores, keys))`.

    Sorted by ranges of keys first, then in each range: a sort of millions of rows at once waits for memory.
    Keys are sorted in 16 bits, which numpy does by radix.
    """
    digits = min(16, (4 * len(keys) // BLOCK_SIZE + 1).bit_length())
    shift = max(0, int(keys.max(initial=0)).bit_length() - digits)
    part = (keys >> shift).astype(np.uint16)
    rows = np.argsort(part, kind="stable")
    for low, high in pairwise([0, *np.cumsum(np.bincount(part)).tolist()]):
        mine = rows[low:high]
        mine = mine.take(falling(scores.take(mine)))
        if shift:
            within = keys.take(mine) & ((1 << shift) - 1)
            mine = mine.take(np.argsort(within.astype(np.uint16) if shift <= 16 else within, kind="stable"))
        rows[low:high] = mine
    return rows


def falling(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] rows with the best score first, equal ones as they came: `np.argsort(-scores, kind="stable")`.

    First by radix in 65,536 steps from best to worst: on what is nearly in order, timsort takes a fifth of
    its time, and its time grows no faster than n.
    """
    best, worst = float(scores.max(initial=-np.inf)), float(scores.min(initial=np.inf))
    if not 1e-300 < best - worst < np.inf:
        return np.argsort(-scores, kind="stable")
    steps = ((best - scores) * (65535 / (best - worst))).astype(np.uint16)
    rows = np.argsort(steps, kind="stable")
    return rows.take(np.argsort(-scores.take(rows), kind="stable"))
