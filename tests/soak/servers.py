"""A real `mlflow server` on a free local port that can be killed and restarted."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.soak.clones import DROPPED_VARIABLES, wait


class Server:
    """An MLflow server on a SQLite file.

    Args:
        folder: Folder of the database and the artifacts.
        port: TCP port, the same after each start; None picks a free one.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder, self.port = folder, port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 900) -> "Server":
        """Start the server and wait until it answers."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED_VARIABLES)}
        words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, env=kept | more, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        if not wait(self.answers, seconds, 0.3):
            raise RuntimeError(f"the server does not answer, see {self.folder}/server.log")
        return self

    def kill(self) -> None:
        """Kill the server and its workers at once, like a crash."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            time.sleep(0.2)

    @property
    def pid(self) -> int:
        """Process id of the main process."""
        assert self._process is not None
        return self._process.pid

    def answers(self) -> bool:
        """Return True if the server answers its health check."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def free_port() -> int:
    """Free local TCP port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
