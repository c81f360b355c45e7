"""Batches through memory files."""

import os
from typing import Any

import pytest
import torch

from detection.data.loading import batch_transfer
from detection.data.loading.batch_transfer import MemoryFile, batch_memory


@pytest.fixture(autouse=True)
def in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_transfer, "get_worker_info", lambda: object())


class Duplicate:
    """Stands for `DupFd`, which needs a second process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def detach(self) -> int:
        return os.dup(self.number)


def sent(batch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(batch_transfer, "DupFd", Duplicate)
    file = MemoryFile(batch)
    receive, arguments = file.__reduce__()[:2]
    return receive(*arguments)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_sent_in_the_memory_that_they_were_written_to(
    monkeypatch: pytest.MonkeyPatch, channels_last: bool, dtype: torch.dtype
) -> None:
    images = batch_memory((2, 3, 5, 7), dtype, channels_last)
    images.copy_(torch.arange(210).view(2, 3, 5, 7))
    labels, empty = torch.arange(5), torch.zeros(2, 0, 4)
    wide = torch.rand(2, 8, 4).permute(0, 2, 1)[:, :, ::2]
    received = sent({"labels": labels, "images": images, "empty": empty, "wide": wide}, monkeypatch)
    assert received["labels"].equal(labels)
    assert received["wide"].equal(wide)
    assert received["empty"].shape == (2, 0, 4)
    assert received["images"].equal(images)
    assert received["images"].stride() == images.stride()
    images[1, 2, 4, 6] = 7
    assert received["images"][1, 2, 4, 6] == 7  # the same memory: nothing was copied
