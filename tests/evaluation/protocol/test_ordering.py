"""Radix sorts equal numpy's stable sorts; blocks are whole groups."""

import numpy as np
import pytest

from detection.evaluation.protocol import overlaps


@pytest.mark.parametrize("seed", range(20))
def test_equals_numpy_stable_sorts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlaps, "BLOCK_SIZE", int(2 ** np.random.default_rng(seed).integers(3, 20)))
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 3000))
    keys = rng.integers(0, 2 ** int(rng.integers(1, 40)), count)
    scores = [rng.random(count), rng.integers(0, 9, count) / 8, rng.normal(0, 1e6, count)][seed % 3]
    assert np.array_equal(overlaps.argsort_by_key(keys, scores), np.lexsort((-scores, keys)))
    assert np.array_equal(overlaps.argsort_descending(scores), np.argsort(-scores, kind="stable"))


@pytest.mark.parametrize("scores", [[], [0.5, 0.5], [1e308, -1e308, 0.0], [5e-324, 0.0, 5e-324]])
def test_extreme_scores(scores: list[float]) -> None:
    assert np.array_equal(overlaps.argsort_descending(np.array(scores)), np.argsort(-np.array(scores), kind="stable"))


def test_blocks_are_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlaps, "BLOCK_SIZE", 10)
    starts = np.array([0, 3, 9, 30, 31, 31, 40])
    blocks = list(overlaps.blocks(starts))
    assert [low for low, _ in blocks] == [0, *(high for _, high in blocks[:-1])]
    assert blocks[-1][1] == len(starts) - 1
    assert max(starts[high - 1] - starts[low] for low, high in blocks) < 20
    assert list(overlaps.blocks(overlaps.run_starts(np.array([], dtype=np.int64)))) == []
    assert overlaps.run_starts(np.array([2, 2, 3, 7, 7])).tolist() == [0, 2, 3, 5]
    assert list(overlaps.blocks(np.array([0, 0, 0]))) == [(0, 2)]
