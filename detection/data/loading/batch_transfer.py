"""Batches from a worker to its training process, in anonymous shared memory.

torch sends tensors through `/dev/shm`, which has 64 MB in a container by default: less than one batch of 800-pixel
images per worker. A memory file (`memfd_create`) is shared memory without that limit, and one per batch instead of
one per tensor takes fewer file descriptors. It is freed with the last tensor in it. `batch_memory` gives the images
memory in it beforehand, so that a batch is written once.
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
Layout = list[tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]]
"""Offset, dtype, shape and stride of each tensor."""


def to_send(batch: Any) -> Any:
    """Return value of a worker for a batch: the batch itself outside workers and on systems without memory files."""
    return MemoryFile(batch) if get_worker_info() is not None and hasattr(os, "memfd_create") else batch


def batch_memory(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Uninitialized tensor for the images of a batch; in a worker in the memory file that the batch is sent in.

    Args:
        shape: B, C, H, W.
        dtype: Type of the elements.
        channels_last: Memory format; otherwise contiguous.
    """
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    stored, back = tuple(shape[i] for i in order), (0, 3, 1, 2) if channels_last else order
    if get_worker_info() is None or not hasattr(os, "memfd_create") or math.prod(shape) == 0:
        return torch.empty(stored, dtype=dtype).permute(back)
    file = _File(math.prod(shape) * dtype.itemsize)
    tensor = torch.frombuffer(file.map(), dtype=dtype).view(stored).permute(back)
    tensor.memory_file = file  # type: ignore[attr-defined]
    return tensor


class _File:
    """A memory file, closed with this object; tensors in it keep it in memory by their mapping."""

    def __init__(self, size: int) -> None:
        self.number = os.memfd_create("batch")
        self.grow(size)

    def grow(self, size: int) -> None:
        """Set the size in bytes; mappings stay valid."""
        self.size = max(size, 1)
        os.ftruncate(self.number, self.size)

    def map(self) -> mmap.mmap:
        """Map the whole file."""
        return mmap.mmap(self.number, self.size)

    def __del__(self) -> None:
        os.close(self.number)


class MemoryFile:
    """A batch on its way: any object that can be pickled, whose tensors are in a memory file.

    Unpickling gives the batch itself. The first tensor from `batch_memory` is sent in its own file, and the others
    are copied to behind it.
    """

    def __init__(self, batch: Any) -> None:
        content = io.BytesIO()
        pickler = _Pickler(content)
        pickler.dump(batch)
        tensors = pickler.tensors
        own = next((tensor for tensor in tensors if hasattr(tensor, "memory_file")), None)
        self._file: _File = _File(0) if own is None else own.memory_file
        self._content, self._layout = content.getvalue(), Layout()
        end = 0 if own is None else _aligned(self._file.size)
        for tensor in tensors:
            offset, end = (0, end) if tensor is own else (end, end + _aligned(tensor.numel() * tensor.element_size()))
            self._layout.append((offset, tensor.dtype, tuple(tensor.shape), _dense_stride(tensor)))
        self._file.grow(end)
        memory = self._file.map()
        for entry, tensor in zip(self._layout, tensors, strict=True):
            if tensor is not own:
                _tensor(memory, *entry).copy_(tensor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (DupFd(self._file.number), self._content, self._layout)


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
    return _Unpickler(content, [_tensor(memory, *entry) for entry in layout]).load()


def _tensor(
    memory: mmap.mmap, offset: int, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """Tensor on a part of the memory, which it keeps alive."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).as_strided(shape, stride)


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Stride of a copy without gaps, in the tensor's memory format."""
    return torch.empty_like(tensor, device="meta").stride()


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT
