"""How every stage starts and ends: log lines on stdout, one line for an error a person can mend."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from detection.errors import user_message

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent dies: `dvc` killed alone would leave its stage running."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def run(stage: Callable[[], None]) -> None:
    """Run a stage's `main` and leave with its exit code: 1 and one line on stderr for what can be mended.

    SIGTERM is an exit as any other: what is open is closed. (A training answers with `StopSignals`.)
    """
    die_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a queue's worker was started without
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        stage()
    except Exception as error:
        if (told := user_message(error)) is None:
            raise
        sys.exit(f"error: {told}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
