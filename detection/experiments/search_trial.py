"""One trial of a search: `dvc exp run --temp` in a process of its own, its curve on val, and its graceful stop."""

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from detection.errors import DataError
from detection.files import REPORTS_TRAIN, TRAIN_RUN_JSON, locked, read_table
from detection.tracking.client import read_run_id

TRAINING = "stages.train"
STORAGE_VARIABLE = "DETECTION_SEARCH_STORAGE"
"""URL of Optuna's database, which may hold a password: trainings do not get it."""
STANDALONE = Path(".dvc/tmp/exps/standalone")
"""Folder of the workspaces of `dvc exp run --temp`."""
START_TIMEOUT_S = 60.0
POLL_S = 0.5
EXIT_CODE = re.compile(r"exited with (-?\d+)")
ERROR = re.compile(r"^error: (.+)", re.MULTILINE)
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class TrialProcess:
    """A running experiment.

    Args:
        root: The repository.
        name: Name of the experiment.
        overrides: Arguments of `-S`.
        log: File that receives DVC's output.
    """

    def __init__(self, root: Path, name: str, overrides: Sequence[str], log: Path) -> None:
        self._root, self._log = root, log
        log.parent.mkdir(parents=True, exist_ok=True)
        flags = [word for one in overrides for word in ("-S", one)]
        self.command = shlex.join(["dvc", "exp", "run", "-n", name, *flags])
        # DVC takes the first experiment of its stash: two starts at once might take each other's.
        with locked(log.parent / "start.lock"):
            with log.open("ab") as output:
                self._position = output.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-n", name, *flags],
                    cwd=root,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches the search alone, which stops its trainings
                    preexec_fn=_die_with_parent,
                    env={key: value for key, value in os.environ.items() if key != STORAGE_VARIABLE},
                )
            until = time.monotonic() + START_TIMEOUT_S
            while self.running() and time.monotonic() < until and not self._stages():
                time.sleep(POLL_S)

    def running(self) -> bool:
        """Return True until the process ends."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait for the end."""
        self._process.wait()

    @property
    def finished(self) -> bool:
        """True if the experiment has ended and DVC has saved it."""
        return self._process.returncode == 0

    def interrupted(self) -> bool:
        """Return True if a signal ended the training; False after an error."""
        codes = [int(code) for code in EXIT_CODE.findall(self._output())]
        return any(code < 0 or code > 128 for code in codes) or self._process.returncode < 0

    def failure(self) -> str:
        """First error of a stage, else the last line of the output."""
        errors, output = ERROR.findall(self._output()), self._output().strip().splitlines()
        return str(errors[0] if errors else (output or ["no output"])[-1])

    def curve(self) -> dict[str, dict[int, float]]:
        """Scores on val by metric and epoch, as far as the training has come."""
        training = self._training()
        with suppress(OSError, ValueError):
            if training is not None:
                return read_curve(Path(training.cwd(), REPORTS_TRAIN, "metrics.csv"))
        return {}

    def run_id(self) -> str | None:
        """MLflow run of the training, once it has one."""
        training = self._training()
        with suppress(OSError, ValueError):
            if training is not None:
                return read_run_id(Path(training.cwd(), TRAIN_RUN_JSON))
        return None

    def stop(self) -> bool:
        """Ask the training to save its checkpoint and end as KILLED; returns False if there is none.

        It is DVC's grandchild: DVC itself would leave it behind.
        """
        training = self._training()
        if training is None:
            return False
        with suppress(Exception):  # it has just ended
            training.send_signal(signal.SIGTERM)
        return True

    def terminate(self) -> None:
        """Stop the training, or DVC before or after it."""
        if not self.stop() and self.running():
            self._process.terminate()

    def _stages(self) -> list[Any]:
        """Processes of stages (`psutil.Process`), parents first."""
        import psutil

        found = []
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any(word.startswith("stages.") for word in child.cmdline()):
                        found.append(child)
        return found

    def _training(self) -> Any:
        import psutil

        for child in self._stages():
            with suppress(psutil.Error):
                if TRAINING in child.cmdline():
                    return child
        return None

    def _output(self) -> str:
        with self._log.open("rb") as file:
            file.seek(self._position)
            return file.read().decode(errors="replace")


def read_curve(path: Path) -> dict[str, dict[int, float]]:
    """Scores by metric and epoch from a training's `metrics.csv`.

    Raises:
        DataError: The training has no scores on val.
    """
    table = read_table(path)
    if table is None:
        return {}
    columns = [name for name in table.columns if name not in ("epoch", "step", "time") and "/" not in name]
    if not columns:
        raise DataError("the training has no scores on val; name a val split, or a holdout_fraction, of the dataset")
    epochs = table["epoch"].astype(int)
    return {name: dict(zip(epochs, table[name].astype(float), strict=True)) for name in columns}


def _die_with_parent() -> None:
    """Have Linux send SIGTERM when the search dies; the stages then follow DVC."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
