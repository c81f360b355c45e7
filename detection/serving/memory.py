"""Settings of the C library's allocator that keep a long-running server's memory from growing.

glibc gives threads arenas of their own, up to eight per core, each of which keeps the largest amount of memory that its
threads ever used at a time; and freed memory below a block in use stays with the process. On other systems the
functions do nothing.
"""

import ctypes
from typing import Any

M_ARENA_MAX = -8
ARENAS = 2


def share_arenas() -> None:
    """Let all threads share two arenas; call it before threads start."""
    if function := _libc_function("mallopt"):
        function(M_ARENA_MAX, ARENAS)


def return_free_memory() -> None:
    """Return freed memory to the system."""
    if function := _libc_function("malloc_trim"):
        function(0)


def _libc_function(name: str) -> Any:
    """Function of the C library; None if it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows
        return None
