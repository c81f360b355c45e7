"""Checkpoints in `<DVC_ROOT>/.checkpoints/<stage>/<key>/`, and the training state that they hold.

The key is a hash of everything that decides the result: params, and the content of the stage's dependencies
in dvc.yaml, data and code. A run therefore never resumes from the checkpoint of another experiment. The
folder is not a DVC output, because DVC deletes outputs before it runs a stage.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from detection import distributed
from detection.errors import CheckpointError, reason
from detection.files import checkpoint_root, locked, save_weights
from detection.pipeline import dependency_files, update_hash

log = logging.getLogger(__name__)
FORMAT = 2
"""Version of the files' content; a file of another version is refused."""
KEYS_KEPT = 5
"""Keys per stage that pruning keeps, counted separately for finished and unfinished ones."""
UNFINISHED_KEPT_S = 7 * 86400
"""Age up to which unfinished keys are never pruned."""
PARTIAL_SUFFIX = ".writing"
FRESH_VARIABLE = "DETECTION_FRESH"
"""Environment variable; 1 deletes existing checkpoints of the key at the start."""
LOCK_POLL_S = 0.5
"""Interval between two tries to lock a folder that another process uses."""
STATE_FILE, COMPLETE_FILE, LOCK_FILE, TRAINING_ID_FILE = "state.pt", "complete", "lock", "training"
T = TypeVar("T")


def content_key(stage: str, values: Mapping[str, Any], root: str | Path = ".", without: str | None = None) -> str:
    """Hash the params that a stage uses and the content of its dependencies in dvc.yaml.

    Args:
        stage: Name in dvc.yaml.
        values: The params, as JSON types.
        root: Workspace of the stage.
        without: Folder of dependencies that this run does not read. For instance, pretraining on ImageNet
            does not depend on the dataset.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    files = dependency_files(stage, root)
    update_hash(digest, (file for file in files if without is None or not file[0].startswith(f"{without}/")))
    return digest.hexdigest()[:20]


class Checkpoints:
    """Checkpoint folder of one key, locked by one process at a time.

    Only rank 0 locks and writes: on other ranks the methods that write do nothing.

    Args:
        stage: Name of the stage.
        key: Key from `content_key`.
    """

    def __init__(self, stage: str, key: str) -> None:
        self.folder = checkpoint_root() / stage / key

    @contextmanager
    def locked(self) -> Iterator["Checkpoints"]:
        """Lock the folder; wait while another process runs with the same key."""
        if not distributed.is_main():
            while distributed.maximum(0) == [0]:
                pass  # rank 0 waits for the lock, and answers more often than collectives time out
            yield self
            return
        with self._stage_locked():
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)  # the newest folder is never pruned
            lock = (self.folder / LOCK_FILE).open("w")
        with lock:
            if not _try_lock(lock):
                log.info("the same %s runs in another process; waiting for it", self.folder.parent.name)
                while not _try_lock(lock):
                    distributed.maximum(0)
                    time.sleep(LOCK_POLL_S)
            self._clean()
            with self._stage_locked():
                self._prune()
            distributed.maximum(1)
            yield self

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a file atomically: write a temporary file, sync it to disk, rename it.

        Raises:
            CheckpointError: The disk is full or not writable; the previous file is intact.
        """
        if not distributed.is_main():
            return
        temporary = self.folder / f"{name}{PARTIAL_SUFFIX}"
        try:
            save_weights(temporary, {"format": FORMAT, **state})
            temporary.replace(self.folder / name)
            _sync_folder(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.folder / name} cannot be written: {error.strerror}; free disk space and rerun the "
                "command to resume from the last checkpoint"
            ) from None

    def load(self, name: str) -> dict[str, Any] | None:
        """Content of a file; None if it does not exist. All ranks take part.

        Rank 0 reads the file and sends it to the others, whose machines may have no such file, or an old one.

        Raises:
            CheckpointError: The file is damaged or of another format.
        """
        content: dict[str, Any] | CheckpointError | None = None
        if distributed.is_main():
            try:
                content = self._read(self.folder / name)
            except CheckpointError as error:
                content = error
        content = distributed.broadcast(content)
        if isinstance(content, CheckpointError):
            raise content
        return content

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        fix = f"delete {self.folder} to start over"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {reason(error)}; {fix}") from None
        if (version := state.pop("format", 1)) != FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {version}, expected {FORMAT}; {fix}")
        return state

    def keep_only(self, name: str, pattern: str) -> None:
        """Delete all files that match a pattern, except one."""
        for path in self.folder.glob(pattern):
            if path.name != name and distributed.is_main():
                path.unlink(missing_ok=True)

    def training_id(self) -> str:
        """Random id of this training; it survives resuming, and a fresh start gets a new one."""
        path = self.folder / TRAINING_ID_FILE
        if not distributed.is_main():
            return ""
        if not path.exists():
            temporary = self.folder / f"{TRAINING_ID_FILE}{PARTIAL_SUFFIX}"
            with temporary.open("w", encoding="utf-8") as file:
                file.write(uuid.uuid4().hex)
                file.flush()
                os.fsync(file.fileno())  # otherwise a power loss could leave an empty file
            temporary.replace(path)
        return path.read_text(encoding="utf-8")

    @property
    def complete(self) -> bool:
        """True once the work under this key is finished."""
        return (self.folder / COMPLETE_FILE).exists()

    def mark_complete(self) -> None:
        """Mark the work under this key as finished; its files stay for a repeated run."""
        if distributed.is_main():
            (self.folder / COMPLETE_FILE).touch()

    def _stage_locked(self) -> AbstractContextManager[None]:
        """Lock for creating and pruning folders of this stage."""
        return locked(self.folder.parent.with_suffix(".lock"))

    def _clean(self) -> None:
        """Delete partial files of a killed process, or all files if `DETECTION_FRESH=1`."""
        fresh = os.environ.get(FRESH_VARIABLE, "") not in ("", "0")
        for path in self.folder.iterdir():
            if path.is_dir() and fresh:
                shutil.rmtree(path)
            elif path.name.endswith(PARTIAL_SUFFIX) or (fresh and path.name != LOCK_FILE):
                path.unlink()

    def _prune(self) -> None:
        """Delete all but the newest keys of the stage, except those locked by a process.

        Finished and unfinished keys are counted separately, and unfinished ones are kept for a week, so that
        short experiments never evict the checkpoint of a long interrupted training.
        """
        modified = {folder: folder.stat().st_mtime for folder in self.folder.parent.iterdir()}
        folders, now = sorted(modified, key=lambda folder: modified[folder], reverse=True), time.time()
        for complete in (True, False):
            for folder in [f for f in folders if (f / COMPLETE_FILE).exists() == complete][KEYS_KEPT:]:
                if not complete and now - modified[folder] < UNFINISHED_KEPT_S:
                    continue
                with (folder / LOCK_FILE).open("a") as lock:
                    if not _try_lock(lock):
                        continue
                    shutil.rmtree(folder, ignore_errors=True)


def _try_lock(lock: IO[str]) -> bool:
    """Lock an open file for this process; False if another process has locked it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a rename survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(slots=True)
class State:
    """Counters of a training; with weights and RNG states they make a complete checkpoint."""

    step: int = 0
    """Optimizer steps taken."""
    seconds: float = 0.0
    """Training time, summed over resumed runs."""
    best: float = -1.0
    """Highest monitored metric on `val`."""
    best_epoch: int = 0
    """Epoch of `best`."""
    stale: int = 0
    """Validations since `best`."""
    validated: int = 0
    """Step of the last validation."""


def snapshot(
    state: State, model: nn.Module, optimizer: Optimizer, ema: nn.Module | None, **more: Any
) -> dict[str, Any]:
    """Return the content of a checkpoint that resumes bit-equal, RNG states included; all ranks take part.

    Args:
        state: The counters.
        model: Model on this rank.
        optimizer: Its optimizer.
        ema: Moving average of the weights, if any.
        **more: Further entries.
    """
    return {
        "state": asdict(state),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema is not None else None,
        "threads": torch.get_num_threads(),
        "rng": distributed.gather(torch.get_rng_state()),
        "rng_cuda": distributed.gather(torch.cuda.get_rng_state()) if torch.cuda.is_available() else [],
        **more,
    }


def restore(saved: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, ema: nn.Module | None) -> State:
    """Load a snapshot into its objects and return its counters."""
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if ema is not None:
        ema.load_state_dict(saved["ema"])
    if torch.are_deterministic_algorithms_enabled():
        torch.set_num_threads(saved["threads"])  # the order of float additions depends on the thread count
    if len(saved["rng"]) == distributed.world_size():  # else saved with another number of devices
        torch.set_rng_state(saved["rng"][distributed.rank()])
    if torch.cuda.is_available() and len(saved["rng_cuda"]) == distributed.world_size():
        torch.cuda.set_rng_state(saved["rng_cuda"][distributed.rank()])
    return State(**saved["state"])


def resumed_batches(epoch_batches: Callable[[int, int], Iterator[T]], step: int, steps_per_epoch: int) -> Iterator[T]:
    """Yield the batches from a step on, epoch after epoch, without end.

    Args:
        epoch_batches: Function of the epoch and the number of batches to skip.
        step: Steps already taken.
        steps_per_epoch: Batches per epoch.
    """
    epoch, skip = divmod(step, steps_per_epoch)
    while True:
        yield from epoch_batches(epoch, skip)
        epoch, skip = epoch + 1, 0
