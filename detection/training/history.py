"""Losses per step and metrics per validation: in memory for the checkpoint, and as CSV files in `reports/`.

`detection.tracking.uploader` sends the files to MLflow.
"""

import csv
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection import distributed
from detection.data.index import Index
from detection.errors import DivergedError


class Table:
    """Rows that are appended to a CSV as they come.

    Args:
        path: The file.
        head: Columns that stand first.
        rows: What a resumed training already has; the file is written anew from it.
    """

    def __init__(self, path: Path, head: tuple[str, ...], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path, self.columns, self.rows = path, list(head), [dict(row) for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        for row in self.rows:
            self._widen(row)
        self._rewrite()

    def extend(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; a new column (the first row brings them) rewrites the file."""
        self.rows += rows
        if any(self._widen(row) for row in rows):
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerows(rows)

    def _widen(self, row: Mapping[str, Any]) -> bool:
        new = [column for column in row if column not in self.columns]
        self.columns += new
        return bool(new)

    def _rewrite(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)  # the upload to MLflow may be reading the file


class History:
    """Losses per step and metrics per validation.

    Args:
        folder: Where `losses.csv` and `metrics.csv` go.
        state: From a checkpoint, to go on from.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"losses": [], "metrics": []}
        self.losses = Table(folder / "losses.csv", ("step", "epoch", "time", "lr", "loss"), state["losses"])
        self.metrics = Table(folder / "metrics.csv", ("epoch", "step", "time"), state["metrics"])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"losses": self.losses.rows, "metrics": self.metrics.rows}

    def add_losses(self, rows: list[dict[str, Any]]) -> None:
        """Add finished steps: step, epoch, time, lr, loss and each loss term."""
        self.losses.extend(rows)

    def add_metrics(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        """Add scores on val, and those on training samples, whose names bring their `train/`."""
        self.metrics.extend([{"epoch": epoch, "step": step, "time": now_ms(), **scores}])


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class LossBuffer:
    """Losses that are still on the device; reading them one by one would halt it at every step.

    Args:
        history: Where they go once read.
        index: Names the pictures of a batch whose loss is not finite.
    """

    def __init__(self, history: History, index: Index) -> None:
        self.history, self.index = history, index
        self._rows: list[dict[str, Any]] = []
        self._values: list[Tensor] = []
        self._pictures: list[list[int]] = []
        self._names: list[str] = []

    def add(
        self, row: dict[str, Any], total: Tensor, losses: Mapping[str, Tensor], pictures: list[int]
    ) -> None:
        """Note one step: its columns without losses, the losses, and the index rows of its pictures."""
        self._names = ["loss", *losses]
        self._rows.append(row)
        self._values.append(torch.stack([total, *losses.values()]).detach())
        self._pictures.append(pictures)

    def flush(self) -> dict[str, float]:
        """Read the losses, pass them on, and return their means.

        Raises:
            DivergedError: One is not finite; what came before it has been passed on.
        """
        if not self._rows:
            return {}
        values = torch.stack(self._values).cpu().tolist()
        rows = [
            {**row, **dict(zip(self._names, v, strict=True))}
            for row, v in zip(self._rows, values, strict=True)
        ]
        bad = next((i for i, v in enumerate(values) if not all(map(math.isfinite, v))), None)
        self.history.add_losses(rows if bad is None else rows[:bad])
        if bad is not None:
            pictures = [i for share in distributed.gather(self._pictures[bad]) for i in share]
            files = ", ".join(self.index[i].file for i in pictures)
            terms = ", ".join(f"{name} {rows[bad][name]:g}" for name in self._names)
            raise DivergedError(
                f"the loss of step {rows[bad]['step']} is not finite ({terms}); its pictures: {files}. "
                "Lower optimizer.lr, or set train.clip_gradients; the last good checkpoint is kept"
            )
        self._rows, self._values, self._pictures = [], [], []
        return {name: sum(row[name] for row in rows) / len(rows) for name in self._names}
