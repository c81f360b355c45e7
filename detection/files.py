"""Files of the whole package: their layout, locks, temporary folders, and writing them in one piece.

`dvc exp run --temp` and the queue run a stage in a temporary copy of the repository and delete it afterwards.
DVC sets `DVC_ROOT` to the main repository there; what outlives a workspace lies under that root.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Layout of a workspace, as in dvc.yaml.
PARAMS_YAML, DVC_YAML, DVC_LOCK = Path("params.yaml"), Path("dvc.yaml"), Path("dvc.lock")
PREPARED = Path("data/prepared")
RAW_DATA_JSON, RECIPE_JSON = Path("data/raw_data.json"), Path("data/recipe.json")
WEIGHTS_JSON = Path("data/weights.json")
BACKBONE, START, DETECTOR = Path("models/backbone.pt"), Path("models/start.pt"), Path("models/detector.pt")
REPORTS = Path("reports")
REPORTS_DATASET, REPORTS_PRETRAIN = REPORTS / "dataset", REPORTS / "pretrain"
REPORTS_TRAIN, REPORTS_EVALUATION = REPORTS / "train", REPORTS / "evaluation"
EVALUATION_TABLES, REPORTS_PLOTS = REPORTS_EVALUATION / "tables", REPORTS / "plots"
EVALUATED_JSON = EVALUATION_TABLES / "evaluated.json"
"""`detector`: md5 of the detector that the scores beside it belong to; `time`: Unix time of the evaluation in ms."""
REPORT_PAGE, MODEL_CARD = REPORTS / "index.html", REPORTS / "model_card.md"
TRAIN_RUN_JSON, EVALUATION_RUN_JSON = REPORTS / "train_run.json", REPORTS_EVALUATION / "run.json"

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
HEIF_SUFFIXES = (".heic", ".heif")
"""Photos of phones; read if pillow-heif is installed."""
IMAGE_SUFFIXES = (
    *JPEG_SUFFIXES,
    ".png",
    ".bmp",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
    *HEIF_SUFFIXES,
)
"""Lower-case suffixes of the image files that datasets, `pretrain.imagefolder` and `predict` read."""
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp"),
)
"""Lower-case suffixes of the files that `predict` reads as videos."""

CLASS_COLUMNS = ("class", "actual", "predicted")
"""Columns of the tables that hold class names."""

UNLOCKED_GRACE_S = 60
"""Age from which an empty unlocked temporary folder counts as abandoned; a younger one may not be locked yet."""


def dvc_root() -> Path:
    """Main repository: `$DVC_ROOT`, else the nearest parent with a `.dvc` folder, else the current folder."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def data_root() -> Path:
    """Folder of raw datasets: `$DATA_ROOT`, relative to the main repository, else `<DVC_ROOT>/data/raw`."""
    return dvc_root() / (os.environ.get("DATA_ROOT") or "data/raw")


def checkpoint_root() -> Path:
    """Folder of checkpoints, by stage and content key; not a DVC output, so that DVC does not delete it."""
    return dvc_root() / ".checkpoints"


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold an exclusive `flock` on a file, across threads, processes and workspaces; wait until it is free.

    The file is created if missing. The kernel releases the lock when the process ends, even if it is killed.
    The file is never deleted: otherwise a third process could lock a new file of the same name while the
    second one still waits for the old file.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LockedTemporaryDirectory(tempfile.TemporaryDirectory[str]):
    """Temporary folder that is locked while in use, so that folders of killed processes can be deleted.

    Args:
        prefix: Prefix of the name. Abandoned folders with the same prefix are deleted first.
        parent: Folder that it is made in; None for the system's temporary one.
    """

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        for folder in (parent or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
            _delete_if_abandoned(folder)
        super().__init__(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
        self._lock = _open_folder(Path(self.name))
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        """Delete the folder and release the lock."""
        super().cleanup()
        os.close(self._lock)


def _delete_if_abandoned(folder: Path) -> None:
    try:
        if not any(folder.iterdir()) and time.time() - folder.stat().st_mtime < UNLOCKED_GRACE_S:
            return
        lock = _open_folder(folder)
    except OSError:  # of another user, or deleted meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5(path: str | Path) -> str:
    """MD5 of a file's content, in hexadecimal digits, as in dvc.lock."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing file gives an empty one."""
    try:
        values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values


def read_table(path: str | Path) -> "pd.DataFrame | None":
    """Read a CSV file; None if it is missing or has no rows."""
    import pandas as pd

    try:
        # A class may be called "01", "nan" or "none": names are text, and only an empty cell is a missing number.
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(CLASS_COLUMNS, str))
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    return table if len(table) else None


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as JSON and create the folder; a reader never sees a partial file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values with `torch.save`, synced to disk.

    Raises:
        OSError: The file cannot be written, for instance on a full disk; PyTorch reports that as a
            `RuntimeError` about its archive without the cause and the file name.
    """
    import torch

    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
