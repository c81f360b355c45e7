"""Start and end of every stage: log on stdout, one line on stderr for an error that the user can fix."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from detection.errors import user_message
from detection.pipeline import StageInputs
from detection.signals import LAUNCHER

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have Linux send SIGTERM when the parent dies; otherwise a stage would outlive a killed `dvc`.

    A rank that is still starting when its launcher dies would wait for the other ranks until the join times out.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = int(os.environ.get(LAUNCHER) or os.getppid())
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


def run(stage: Callable[[], None]) -> None:
    """Run a stage's `main` and exit with its code: 1 and one line on stderr for an error the user can fix.

    Under DVC, a change of the stage's code or params while it ran is such an error. SIGTERM and SIGHUP raise
    SystemExit, so that open files and runs are closed. Training handles them with `StopSignals`.
    """
    die_with_parent()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warns of each connection to a machine without a name
    signal.signal(signal.SIGTERM, _exit)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under `nohup`
        signal.signal(signal.SIGHUP, _exit)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of DVC's queue start with it ignored
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    name = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    try:
        inputs = StageInputs(name) if name else None
        stage()
        if inputs:
            inputs.check()
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
