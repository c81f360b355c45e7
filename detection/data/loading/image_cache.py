"""Decoded pictures in memory that all loader processes share, within a budget.

Anonymous shared memory, made before the loader's processes are forked: it has no limit such as `/dev/shm` has
(64 MB in a container, by default), takes up only what is written to, and goes when the last process goes.
"""

import mmap
import multiprocessing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ImageCache:
    """A place for each of a split's first pictures, as many as the budget holds; filled as they are decoded.

    A picture comes out as it was put in, in bytes and memory layout, so that it makes no difference to a
    training which pictures are held.

    Args:
        sizes: [N, 2] height and width of the split's pictures.
        megabytes: Budget in MiB.
    """

    def __init__(self, sizes: NDArray[np.int32], megabytes: float) -> None:
        ends = np.cumsum(3 * sizes.astype(np.int64).prod(axis=1))
        count = int(np.searchsorted(ends, megabytes * 2**20, side="right"))
        self.sizes = sizes[:count]
        self.ends = ends[:count]
        self.pixels = _shared(int(ends[count - 1]) if count else 0)
        self.held = _shared(count)
        self.lock = multiprocessing.get_context("fork").Lock()

    def __len__(self) -> int:
        """How many pictures there is a place for."""
        return len(self.sizes)

    def get(self, row: int) -> Tensor | None:
        """The picture of a row, Tensor[3, H, W] uint8, not to be written to; None where it is not held."""
        if row >= len(self):
            return None
        with self.lock:  # orders the pixels before the mark on every processor
            held = bool(self.held[row])
        return torch.from_numpy(self._place(row)).permute(2, 0, 1) if held else None

    def put(self, row: int, picture: Tensor) -> None:
        """Hold a picture, Tensor[3, H, W] uint8, where there is a place of its size for it."""
        if row >= len(self) or picture.shape[1:] != tuple(self.sizes[row]):
            return  # a file that is not as large as its annotation says is decoded each time
        self._place(row)[:] = picture.permute(1, 2, 0).numpy()
        with self.lock:
            self.held[row] = 1

    def _place(self, row: int) -> NDArray[np.uint8]:
        height, width = (int(side) for side in self.sizes[row])
        end = int(self.ends[row])
        return self.pixels[end - 3 * height * width : end].reshape(height, width, 3)


def _shared(length: int) -> NDArray[np.uint8]:
    """Zeros that forked processes share; a page takes memory when it is first written to."""
    return np.frombuffer(mmap.mmap(-1, max(length, 1)), np.uint8)[:length]
