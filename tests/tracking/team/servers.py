"""PostgreSQL and S3 on free local ports."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.soak.servers import Process, free_port

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


def start_s3(folder: Path) -> Process:
    """S3 server of moto; `Process.url` is its endpoint."""
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    return Process(words, folder / "s3.log", f"http://127.0.0.1:{port}").start()
