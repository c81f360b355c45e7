"""Cache of decoded images in memory that all workers share, within a budget.

Anonymous shared memory, allocated before the workers are forked. Unlike `/dev/shm` (64 MB in a container by
default) it has no limit of its own, takes up only pages that are written to, and is freed with the last
process.
"""

import mmap
import multiprocessing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ImageCache:
    """The first images of a split, as many as fit the budget; filled as they are decoded.

    A cached image has the same bytes and memory layout as the decoded one, so that results do not depend on
    the cache.

    Args:
        sizes: [N, 2] height and width of the split's images.
        megabytes: Budget in MiB.
    """

    def __init__(self, sizes: NDArray[np.int32], megabytes: float) -> None:
        ends = np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))
        count = int(np.searchsorted(ends, megabytes * 2**20, side="right"))
        self.sizes, self.ends = sizes[:count], ends[:count]
        self.pixels = _shared_zeros(int(ends[count - 1]) if count else 0)
        self.filled = _shared_zeros(count)
        self.lock = multiprocessing.get_context("fork").Lock()

    def __len__(self) -> int:
        """Number of images that fit."""
        return len(self.sizes)

    def get(self, row: int) -> Tensor | None:
        """Image of a row, Tensor[3, H, W] uint8, read-only by convention; None if not cached."""
        if row >= len(self):
            return None
        with self.lock:  # memory barrier: the pixels are visible before the flag on every processor
            filled = bool(self.filled[row])
        return torch.from_numpy(self._slot(row)).permute(2, 0, 1) if filled else None

    def put(self, row: int, image: Tensor) -> None:
        """Store an image, Tensor[3, H, W] uint8, if its row fits and it has the size in the index."""
        if row >= len(self) or image.shape[1:] != tuple(self.sizes[row]):
            return
        self._slot(row)[:] = image.permute(1, 2, 0).numpy()
        with self.lock:
            self.filled[row] = 1

    def _slot(self, row: int) -> NDArray[np.uint8]:
        height, width = (int(side) for side in self.sizes[row])
        end = int(self.ends[row])
        return self.pixels[end - 3 * height * width : end].reshape(height, width, 3)


def _shared_zeros(length: int) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, max(length, 1)), np.uint8)[:length]
