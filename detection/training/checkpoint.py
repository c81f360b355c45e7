"""Checkpoints that outlive a killed process: `<DVC_ROOT>/.checkpoints/<stage>/<key>/`.

The key is a hash over everything the result depends on: params, and the content of the stage's dependencies
in dvc.yaml, data and code alike. Another experiment therefore never meets this one's checkpoint. The folder
is no DVC out, because DVC deletes outs before it runs a stage.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from detection import ranks
from detection.errors import CheckpointError
from detection.paths import checkpoint_root

log = logging.getLogger(__name__)
KEPT = 5  # newest keys of a stage that pruning leaves
COMPLETE = "complete"


def content_key(
    stage: str, values: Mapping[str, Any], pipeline: str | Path = "dvc.yaml", without: str | None = None
) -> str:
    """Hash the values a stage uses and every file that dvc.yaml lists among its dependencies.

    Args:
        stage: Name in dvc.yaml.
        values: What the stage uses of the params; must be JSON.
        pipeline: dvc.yaml, in the stage's workspace.
        without: Folder whose files this run does not read: ImageNet is the same whatever the dataset.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for dependency in sorted(YAML(typ="safe").load(Path(pipeline))["stages"][stage]["deps"]):
        if without is not None and dependency.startswith(f"{without}/"):
            continue
        path = Path(pipeline).parent / dependency
        files = sorted(p for p in path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as content:
                digest.update(dependency.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:20]


class Checkpoints:
    """One key's folder, held by one process at a time.

    Args:
        stage: Name of the stage.
        key: From `content_key`.
    """

    def __init__(self, stage: str, key: str) -> None:
        self.folder = checkpoint_root() / stage / key

    @contextmanager
    def held(self) -> Iterator["Checkpoints"]:
        """Hold the folder; another process with the same key waits here until this one is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("the same %s runs in another process; waiting for it", self.folder.parent.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.utime(self.folder)
            self._prune()
            ranks.wait()
            yield self

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a file whole or not at all: to a temporary name, to the disk, then renamed.

        Raises:
            CheckpointError: The disk is full or not writable; what was there before is whole.
        """
        temporary = self.folder / f"{name}.writing"
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.folder / name} cannot be written: {error}; free some disk"
            ) from None

    def load(self, name: str) -> dict[str, Any] | None:
        """Read a file, or None where there is none."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{path} cannot be read: {reason}; delete the folder to start over"
            ) from None
        return state

    @property
    def complete(self) -> bool:
        """Whether the work under this key was finished."""
        return (self.folder / COMPLETE).exists()

    def mark_complete(self) -> None:
        """Say that the work under this key is finished. It is kept, for whoever asks for the same again."""
        (self.folder / COMPLETE).touch()

    def _prune(self) -> None:
        """Delete all but the newest keys; one that another process holds stays."""
        folders = sorted(self.folder.parent.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
        for folder in folders[KEPT:]:
            with (folder / "lock").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(folder, ignore_errors=True)
