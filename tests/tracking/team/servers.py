"""PostgreSQL, S3 and an MLflow server with a login, as a team runs them, on free local ports."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.soak.clones import DROPPED_VARIABLES, wait
from tests.soak.servers import free_port

START_S = 300.0


class Postgres:
    """PostgreSQL in a temporary folder, run by an ordinary user, since it refuses root."""

    def __init__(self) -> None:
        self.port, self.password = free_port(), secrets.token_hex(8)
        self._user = "postgres" if os.getuid() == 0 else None
        # Not below pytest's folders, which are closed to other users.
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self._data, secret = folder / "data", folder / "password"
        secret.write_text(self.password)
        if self._user:
            for path in (folder, secret):
                shutil.chown(path, self._user)
        self._run("initdb", "-D", self._data, "-U", "team", "--pwfile", secret, "-A", "scram-sha-256", "--no-sync")
        settings = f"-p {self.port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-o", settings, "-l", folder / "log", "-w", "start")

    @staticmethod
    def binary(name: str) -> str | None:
        """Program of PostgreSQL; Debian keeps the server's out of PATH. None if it is not installed."""
        found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        return shutil.which(name) or (str(found[-1]) if found else None)

    def _run(self, name: str, *words: str | Path) -> None:
        program = self.binary(name)
        assert program is not None
        kept = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        subprocess.run(
            [program, *map(str, words)],
            cwd="/", env=kept, user=self._user, stdout=subprocess.DEVNULL, check=True, timeout=START_S,
        )  # fmt: skip

    def create(self, name: str) -> str:
        """Create a database; returns its SQLAlchemy URI."""
        import psycopg

        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://team:{self.password}@127.0.0.1:{self.port}/{name}"

    def _dsn(self, name: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=team password={self.password} dbname={name}"

    def stop(self) -> None:
        """Stop the server."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        self._folder.cleanup()


class Process:
    """A server process with its own process group and a log file.

    Args:
        words: Command.
        log: File of its output.
        url: Address that answers with a status below 500 once the server is ready.
        env: Environment variables besides those of this process that do not concern DVC or MLflow.
    """

    def __init__(self, words: list[str], log: Path, url: str, env: Mapping[str, str] = {}) -> None:
        self.words, self.log, self.url = words, log, url
        kept = {key: value for key, value in os.environ.items() if not key.startswith((*DROPPED_VARIABLES, "AWS_"))}
        self._env = (
            kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | dict(env)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.words, cwd=self.log.parent, env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        if not wait(lambda: self._answers() or self._ended(), START_S, 0.2) or self._ended():
            raise RuntimeError(f"{self.words[2]} does not answer: {self.log.read_text()[-3000:]}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """Kill the server and its workers at once, like a crash."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            time.sleep(0.2)


def start_s3(folder: Path) -> Process:
    """S3 server of moto; `Process.url` is its endpoint."""
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    return Process(words, folder / "s3.log", f"http://127.0.0.1:{port}")
