"""Server processes on free local ports that can be killed and restarted, such as a real `mlflow server`."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.soak.clones import DROPPED_VARIABLES, wait


class Process:
    """A server process with its own process group and a log file, which can be killed and restarted.

    Args:
        words: Command.
        log: File of its output; its folder is the working directory.
        url: Address that answers with a status below 500 once the server is ready.
        env: Environment variables besides those of this process that do not concern DVC, MLflow or S3.
    """

    def __init__(self, words: list[str], log: Path, url: str, env: Mapping[str, str] = {}) -> None:
        self.words, self.log, self.url = words, log, url
        kept = {key: value for key, value in os.environ.items() if not key.startswith((*DROPPED_VARIABLES, "AWS_"))}
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._env = kept | more | dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 900) -> Self:
        """Start the process and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.words, cwd=self.log.parent, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        if not wait(lambda: self.answers() or self._ended(), seconds, 0.2) or self._ended():
            raise RuntimeError(f"{' '.join(self.words[1:3])} does not answer: {self.log.read_text()[-3000:]}")
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
        """Return True if the server answers."""
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


class Server(Process):
    """An MLflow server on a SQLite file.

    Args:
        folder: Folder of the database and the artifacts.
        port: TCP port, the same after each start; None picks a free one.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder, self.port = folder, port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
        words += ["--artifacts-destination", str(folder / "artifacts")]
        super().__init__(words, folder / "server.log", f"{self.uri}/health")


def free_port() -> int:
    """Free local TCP port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
