"""Upload of files to the artifacts of a run or a LoggedModel, each file on its own.

A whole upload has no time limit: it fails if a block is not accepted in time, or if the server does not confirm a
complete file. A file that the server rejects permanently is logged and skipped.
"""

import io
import logging
import mimetypes
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detection.errors import reason
from detection.tracking.store import display_uri, masked

log = logging.getLogger(__name__)

STALL_TIMEOUT_S = 10.0
"""Limit for the connection, and for each block of a file that is sent."""
CONFIRM_TIMEOUT_S = 60.0
MIN_BYTES_PER_S = 1e6
"""Slowest store behind a server: a proxy receives a whole file before it passes it on."""
PROXY_LIMIT = (
    "the server, or a proxy before it, limits uploads: raise the limit (nginx: `client_max_body_size 0;`), "
    "then run `detection sync`"
)
NO_ACCESS = "this user has no permission to write; run `detection sync` as another user"
REFUSED = {401: NO_ACCESS, 403: NO_ACCESS, 413: PROXY_LIMIT}
"""Fix by HTTP status."""
TEMPORARY = (408, 425, 429)


class Progress:
    """Progress of the uploads of a thread, for those who wait for it."""

    def __init__(self) -> None:
        self.count = 0
        """Number of blocks sent; grows while something moves."""
        self.until = 0.0
        """Monotonic time until which nothing may move, as while a server stores a file."""

    def advance(self) -> None:
        """Record that a block was sent."""
        self.count += 1

    def expect(self, seconds: float) -> None:
        """Record that the next step may take so long."""
        self.until = time.monotonic() + seconds


def confirmation_s(size: int) -> float:
    """Seconds that a server may take to store a file of this many bytes once it is sent."""
    return CONFIRM_TIMEOUT_S + size / MIN_BYTES_PER_S


class Artifacts:
    """Artifact folder of a run or a LoggedModel.

    Args:
        client: `mlflow.MlflowClient`.
        uri: Artifact URI of the run or the model.
        progress: Progress to report to.
    """

    def __init__(self, client: Any, uri: str, progress: Progress | None = None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._repository = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
        self.progress = progress or Progress()
        self.refused: list[str] = []
        """Files that the server rejected permanently."""

    def send(self, path: Path, folder: str | None = None) -> None:
        """Send a file; a permanent rejection is logged, any other failure raised.

        Args:
            path: The file.
            folder: Folder of the artifacts; None: their top.
        """
        name = f"{folder}/{path.name}" if folder else path.name
        try:
            _put(self._repository, path, folder, self.progress)
        except Exception as error:  # every type of store has its own
            status = _status(error)
            if status is None:
                raise
            if not self.refused:
                fix = REFUSED.get(status, "correct that, then run `detection sync`")
                size = path.stat().st_size / 1e6
                what = f"HTTP {status}" if status else masked(reason(error))
                log.warning("%s (%.1f MB) is not stored in MLflow at %s: %s; %s", name, size, display_uri(), what, fix)
            self.refused.append(name)
        self.progress.advance()

    def send_all(self, files: Iterable[tuple[Path, str | None]], *, only_missing: bool = False) -> None:
        """Send those of the files that exist.

        Args:
            files: Path and folder of the artifacts of each.
            only_missing: Leave out the files that are there with the same size.
        """
        sizes: dict[str | None, dict[str, int]] = {}
        for path, folder in files:
            if not path.is_file():
                continue
            if only_missing:
                if folder not in sizes:
                    sizes[folder] = self.sizes(folder)
                if sizes[folder].get(path.name) == path.stat().st_size:
                    continue
            self.send(path, folder)

    def sizes(self, folder: str | None) -> dict[str, int]:
        """Size in bytes of each file in a folder of the artifacts."""
        entries = self._repository.list_artifacts(folder)
        return {entry.path.rpartition("/")[2]: entry.file_size for entry in entries if not entry.is_dir}


def files_below(root: Path, folder: str | None = None) -> list[tuple[Path, str | None]]:
    """All files below `root`, each with its folder of the artifacts, `folder` or one inside it."""
    found: list[tuple[Path, str | None]] = []
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        parts = (folder, path.parent.relative_to(root).as_posix())
        found.append((path, "/".join(part for part in parts if part and part != ".") or None))
    return found


def _put(repository: Any, path: Path, folder: str | None, progress: Progress) -> None:
    """Send a file in one request.

    Not by MLflow's multipart upload, which sends files of 500 MB and more around the server, to a store that may be
    closed to this machine, and gives it the timeout of a short call to join the parts.
    """
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    size = path.stat().st_size
    if not isinstance(repository, HttpArtifactRepository):
        progress.expect(confirmation_s(size))
        repository.log_artifact(str(path), folder)
        return
    with _Reader(path, progress) as content:
        response = http_request(
            get_default_host_creds(repository.artifact_uri),
            "/" + "/".join(part for part in (folder, path.name) if part),
            "PUT",
            data=content,
            extra_headers={"Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream"},
            timeout=(STALL_TIMEOUT_S, confirmation_s(size)),
        )
    augmented_raise_for_status(response)


class _Reader(io.FileIO):
    """File that reports each block that is read from it."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self._progress, self._limit = progress, confirmation_s(path.stat().st_size)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a block, as `io.FileIO.read`."""
        self._progress.advance()
        self._progress.expect(self._limit)
        return super().read(-1 if size is None else size)


def _status(error: BaseException) -> int | None:
    """HTTP status of a permanent rejection, 0 for other stores than HTTP; None if a retry may succeed."""
    for one in _chain(error):
        response = getattr(one, "response", None)  # of requests or of botocore
        status = getattr(response, "status_code", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int) and (400 <= status < 500 or status == 501):
            return None if status in TEMPORARY else status
    return 0 if isinstance(error, (ImportError, PermissionError)) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
