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
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from detection import distributed
from detection.errors import CheckpointError, reason
from detection.files import checkpoint_root, locked, save_weights
from detection.pipeline import dependency_files, update_hash

log = logging.getLogger(__name__)
KEPT = 5  # newest keys of a stage that pruning leaves, of the finished and of the unfinished ones
SPARED_S = 7 * 86400  # what is not finished is left so long in any case: several may be cut off at once
COMPLETE, LOCK, TRAINING = "complete", "lock", "training"
WRITING = ".writing"  # ends the name of a file that is not whole yet
FRESH = "DETECTION_FRESH"  # set to 1, what was saved before is not used


def content_key(
    stage: str, values: Mapping[str, Any], root: str | Path = ".", without: str | None = None
) -> str:
    """Hash of the values that a stage uses and of every file that it depends on in dvc.yaml.

    Args:
        stage: Name in dvc.yaml.
        values: Params that the stage uses; JSON.
        root: The stage's workspace.
        without: Folder whose files this run does not read: ImageNet is the same whatever the dataset.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    files = dependency_files(stage, root)
    update_hash(digest, (one for one in files if without is None or not one[0].startswith(f"{without}/")))
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
        with self._alone():
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)  # the newest: nobody prunes it
            lock = (self.folder / LOCK).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("the same %s runs in another process; waiting for it", self.folder.parent.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._tidy()
            with self._alone():
                self._prune()
            distributed.barrier()
            yield self

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a file whole or not at all: to a temporary name, to the disk, then renamed.

        Raises:
            CheckpointError: The disk is full or not writable; what was there before is whole.
        """
        temporary = self.folder / f"{name}{WRITING}"
        try:
            save_weights(temporary, state)
            temporary.replace(self.folder / name)
            _to_disk(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.folder / name} cannot be written: {error.strerror}; free some disk and give the "
                "same command again, it goes on from the last good checkpoint"
            ) from None

    def load(self, name: str) -> dict[str, Any] | None:
        """Read a file, or None where there is none."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read: {reason(error)}; delete the folder to start over"
            ) from None
        return state

    def keep_only(self, name: str, pattern: str) -> None:
        """Delete the files of a pattern but for one of them."""
        for path in self.folder.glob(pattern):
            if path.name != name:
                path.unlink(missing_ok=True)

    def training(self) -> str:
        """A name of this training that stays over all its resumptions; a fresh start has another one."""
        path = self.folder / TRAINING
        if not path.exists():
            temporary = self.folder / f"{TRAINING}{WRITING}"
            with temporary.open("w", encoding="utf-8") as file:
                file.write(uuid.uuid4().hex)
                file.flush()
                os.fsync(file.fileno())  # or a loss of power may leave a name without letters
            temporary.replace(path)
        return path.read_text(encoding="utf-8")

    @property
    def complete(self) -> bool:
        """Whether the work under this key was finished."""
        return (self.folder / COMPLETE).exists()

    def mark_complete(self) -> None:
        """Say that the work under this key is finished. It is kept, for whoever asks for the same again."""
        (self.folder / COMPLETE).touch()

    def _alone(self) -> AbstractContextManager[None]:
        """Keep other processes from making or pruning folders of this stage for a moment."""
        return locked(self.folder.parent.with_suffix(".lock"))

    def _tidy(self) -> None:
        """Delete what a killed process had half written; with `DETECTION_FRESH=1` all that is there."""
        fresh = os.environ.get(FRESH, "") not in ("", "0")
        for path in self.folder.iterdir():
            if path.is_dir() and fresh:
                shutil.rmtree(path)
            elif path.name.endswith(WRITING) or (fresh and path.name != LOCK):
                path.unlink()

    def _prune(self) -> None:
        """Delete all but the newest keys; one that another process holds stays.

        Finished and unfinished ones are counted apart, and an unfinished one is left for a week: some quick
        experiments, finished or given up, must not cost a long training that was cut off the place that it
        goes on from, and of many that lost their power together the first that goes on not all but `KEPT`.
        """
        written = {folder: folder.stat().st_mtime for folder in self.folder.parent.iterdir()}
        folders, now = sorted(written, key=lambda folder: written[folder], reverse=True), time.time()
        for complete in (True, False):
            for folder in [f for f in folders if (f / COMPLETE).exists() == complete][KEPT:]:
                if not complete and now - written[folder] < SPARED_S:
                    continue
                with (folder / LOCK).open("a") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    shutil.rmtree(folder, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Have the folder's new names survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
