"""Batches from a worker to its training process, in anonymous shared memory.

torch sends tensors through `/dev/shm`, which has 64 MB in a container by default: less than one batch of 800-pixel
images per worker. A memory file (`memfd_create`) is shared memory without that limit, and one per batch instead of
one per tensor takes fewer file descriptors. It is freed with the last tensor in it.
"""

import io
import math
import mmap
import os
import pickle
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

ALIGNMENT = 64
"""Tensors start at multiples of this number of bytes."""
Layout = list[tuple[int, torch.dtype, tuple[int, ...]]]
"""Offset, dtype and shape of each tensor."""


def to_send(batch: Any) -> Any:
    """What a worker returns for a batch: the batch itself outside workers and where memory files are missing."""
    return MemoryFile(batch) if get_worker_info() is not None and hasattr(os, "memfd_create") else batch


class MemoryFile:
    """A batch on its way: any object that can be pickled, whose tensors are in a memory file.

    Unpickling gives the batch itself.
    """

    def __init__(self, batch: Any) -> None:
        content = io.BytesIO()
        pickler = _Pickler(content)
        pickler.dump(batch)
        self._content, self._layout, end = content.getvalue(), Layout(), 0
        for tensor in pickler.tensors:
            self._layout.append((end, tensor.dtype, tuple(tensor.shape)))
            end += math.ceil(tensor.numel() * tensor.element_size() / ALIGNMENT) * ALIGNMENT
        self._file = os.memfd_create("batch")
        os.ftruncate(self._file, max(end, 1))
        memory = mmap.mmap(self._file, max(end, 1))
        for place, tensor in zip(self._layout, pickler.tensors, strict=True):
            _tensor(memory, *place).copy_(tensor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (DupFd(self._file), self._content, self._layout)

    def __del__(self) -> None:
        os.close(self._file)


class _Pickler(pickle.Pickler):
    """Pickler that puts tensors aside."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Unpickler that gets tensors by their number."""

    def __init__(self, content: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]


def _receive(file: Any, content: bytes, layout: Layout) -> Any:
    """Map the memory file and restore the batch."""
    handle = file.detach()
    try:
        memory = mmap.mmap(handle, 0)
    finally:
        os.close(handle)
    return _Unpickler(content, [_tensor(memory, *place) for place in layout]).load()


def _tensor(memory: mmap.mmap, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Tensor on a part of the memory, which it keeps alive."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)
