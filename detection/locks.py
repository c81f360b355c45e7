"""One process at a time: a lock on a file, held across threads, processes and temporary workspaces."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
