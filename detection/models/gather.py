"""Picking rows of a padded batch."""

from torch import Tensor


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, S, ...] of `rows` [B, N, ...] at `index` [B, S]: of each picture its own."""
    wide = index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:])
    return rows.gather(1, wide)


def width_in_use(mask: Tensor) -> int:
    """How many columns of a mask [B, N], whose true ones come first, are worth computing with.

    On a CPU, those that some picture uses. Elsewhere all: to know better is to wait for the device.
    """
    return int(mask.sum(dim=1).max()) if mask.device.type == "cpu" else mask.shape[1]
