"""Weights into a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_weights(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save`, where a full disk is the `OSError` that it is for any other file, and to the disk.

    PyTorch's writer covers it up with a complaint about positions in its archive.

    Args:
        path: The file.
        content: Tensors and plain values, by name.

    Raises:
        OSError: It cannot be written; names the file.
    """
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
