"""A server of MLflow's artifact API on a folder, slow or strict as the proxies before real ones."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PREFIX = "/api/2.0/mlflow-artifacts/artifacts"


class ArtifactServer(ThreadingHTTPServer):
    """Stores what is sent to it below a folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.limit = 10**9
        """Largest file in bytes; a larger one gets 413, as from nginx."""
        self.confirm_s = 0.0
        """Seconds until a file is confirmed."""
        self.block_s = 0.0
        """Seconds per 64 KiB: a slow connection."""
        self.received: list[str] = []
        """Paths of all complete uploads."""

    @property
    def uri(self) -> str:
        """Artifact location for an experiment."""
        return f"http://127.0.0.1:{self.server_port}{PREFIX}/1"


class _Handler(BaseHTTPRequestHandler):
    server: ArtifactServer

    def do_PUT(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if size > self.server.limit:
            self._answer(413, b"<html>413 Request Entity Too Large</html>")
            self.rfile.read(size)
            return
        path, content = self._path(), b""
        while len(content) < size:
            content += self.rfile.read(min(65536, size - len(content)))
            time.sleep(self.server.block_s)
        time.sleep(self.server.confirm_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.server.received.append(path.relative_to(self.server.folder).as_posix())
        self._answer(200, b"{}")

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "path" not in query:
            self._answer(200, self._path().read_bytes())
            return
        folder = self.server.folder / query["path"][0]
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        files = [{"path": one.name, "is_dir": one.is_dir(), "file_size": one.stat().st_size} for one in entries]
        self._answer(200, json.dumps({"files": files}).encode())

    def _path(self) -> Path:
        return self.server.folder / urlsplit(self.path).path.removeprefix(PREFIX).strip("/")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[ArtifactServer]:
    """Run a server beside a test."""
    with ArtifactServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
