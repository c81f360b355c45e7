"""Weights into a file."""

import errno
import resource
from pathlib import Path

import pytest
import torch

from detection.files import save_weights


def test_a_disk_that_is_full_is_an_error_of_the_system_that_names_the_file(tmp_path: Path) -> None:
    path, before = tmp_path / "detector.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as far as a process can fill a disk
    try:
        with pytest.raises(OSError, match="File too large") as full:
            save_weights(path, {"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(path))
    save_weights(path, {"x": torch.ones(3)})
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(3))
