"""Temporary folders that do not outlive a killed process for long: the next of the kind clears them away."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

YOUNG_S = 3600  # so old a folder has long been locked by whoever made it


class Scratch(tempfile.TemporaryDirectory[str]):
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
