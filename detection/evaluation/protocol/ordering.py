"""Sorting and pairing of millions of detections.

Large arrays are processed in blocks that fit into the CPU cache: array operations on a whole split would read
every operand from memory and allocate large temporaries.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 1 << 18
"""Pairs or detections processed at once."""


def run_starts(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """[G + 1] first index of each of the G runs of equal keys, and the end of the last."""
    other = keys[1:] != keys[:-1]
    return np.concatenate([np.arange(min(len(keys), 1)), np.flatnonzero(other) + 1, [len(keys)]])


def blocks(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of consecutive groups with about `BLOCK_SIZE` elements each.

    Args:
        starts: [G + 1] first element of each group, and the end of the last.
    """
    cuts = np.searchsorted(starts, np.arange(BLOCK_SIZE, starts[-1], BLOCK_SIZE))
    return pairwise(np.unique([0, *cuts.tolist(), len(starts) - 1]).tolist())


def range_pairs(
    start: NDArray[np.int64], count: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs `(i, j)` with `start[i] <= j < start[i] + count[i]`.

    Yields:
        `i` and `j` of about `BLOCK_SIZE` pairs, ascending; at least one block, which may be empty.
    """
    total = np.zeros(len(count) + 1, dtype=np.int64)
    np.cumsum(count, out=total[1:])
    cuts = np.searchsorted(total, np.arange(BLOCK_SIZE, total[-1], BLOCK_SIZE), side="left")
    edges = np.unique(np.concatenate([[0], cuts, [len(count)]]))
    for low, high in pairwise(edges.tolist()) if len(edges) > 1 else [(0, 0)]:
        lengths = count[low:high]
        left = np.repeat(np.arange(low, high), lengths)
        within = np.arange(len(left)) - np.repeat(total[low:high] - total[low], lengths)
        yield left, start[left] + within


# numpy sorts 16-bit integers by radix. With `np.lexsort` and a plain `np.argsort` instead of the two
# functions below, scoring COCO val (500,000 detections) takes 30 to 40 % more CPU time: 0.80 s, not 0.58 s.


def argsort_descending(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] `np.argsort(-scores, kind="stable")`, in a third of its time.

    Scores are first sorted by radix in 65,536 steps: timsort is fast on nearly sorted input.
    """
    best, worst = float(scores.max(initial=-np.inf)), float(scores.min(initial=np.inf))
    if not 1e-300 < best - worst < np.inf:
        return np.argsort(-scores, kind="stable")
    steps = ((best - scores) * (65535 / (best - worst))).astype(np.uint16)
    order = np.argsort(steps, kind="stable")
    return order.take(np.argsort(-scores.take(order), kind="stable"))


def argsort_by_key(keys: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] `np.lexsort((-scores, keys))` for non-negative keys, by radix on 16 bits at a time."""
    order = argsort_descending(scores)
    for shift in range(0, int(keys.max(initial=0)).bit_length(), 16):
        digits = (keys.take(order) >> shift).astype(np.uint16)
        order = order.take(np.argsort(digits, kind="stable"))
    return order
