"""Where things live that outlast one workspace: the raw data, the checkpoints, the tracking store.

`dvc exp run --temp` and the queue run a stage in a temporary copy of the repository that is deleted
afterwards; DVC sets `DVC_ROOT` to the main repository there. What must survive hangs on that root.

One process at a time: a lock on a file, held across threads, processes and temporary workspaces.

Temporary folders that do not outlive a killed process for long: the next of the kind clears them away.

Weights into a file.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def dvc_root() -> Path:
    """The main repository: `$DVC_ROOT`, else the nearest folder upward that holds `.dvc`, else here."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def data_root() -> Path:
    """Raw datasets: `$DATA_ROOT` (relative to the main repository), else `<DVC_ROOT>/data/raw`.

    A dataset's `path` is relative to it.
    """
    return dvc_root() / (os.environ.get("DATA_ROOT") or "data/raw")


def checkpoint_root() -> Path:
    """Checkpoints by stage and content key; never a DVC out, so that DVC does not delete them."""
    return dvc_root() / ".checkpoints"


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold an exclusive `flock` on the file `path` (made where it is missing); waits until it is free.

    The system lets go of it when the process ends, however it ends. The file itself stays: removing it would
    let a third process lock a new file of the same name while the second still waits for the old one.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


YOUNG_S = 3600  # so old a folder has long been locked by whoever made it


class LockedTemporaryDirectory(tempfile.TemporaryDirectory[str]):
    """A temporary folder, locked as long as it is used.

    The system lets go of a lock when its process ends, however it ends.

    Args:
        prefix: Of its name; folders with the same one that nobody holds any more are deleted first.
    """

    def __init__(self, prefix: str) -> None:
        for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _delete_if_left(folder)
        super().__init__(prefix=prefix, ignore_cleanup_errors=True)
        self._lock = _open(Path(self.name))
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        """Delete it."""
        super().cleanup()
        os.close(self._lock)


def _delete_if_left(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime < YOUNG_S:
            return
        lock = _open(folder)
    except OSError:  # another person's, or gone meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


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
