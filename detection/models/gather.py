"""Picking rows of a batch."""

from torch import Tensor


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, S, ...] of `rows` [B, N, ...] at `index` [B, S]: of each picture its own."""
    wide = index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:])
    return rows.gather(1, wide)
