"""Losses per step and metrics per validation: in memory for the checkpoint, in CSV files, and in the log.

`detection.tracking.uploader` sends the files to MLflow.
"""

import csv
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from detection import distributed
from detection.data.loading.index import Index
from detection.errors import DataError, DivergedError

log = logging.getLogger(__name__)
UNTIMED_STEPS = 3  # the first steps fill caches and would bias the ETA


class CsvTable:
    """CSV file that grows by rows and, if a row brings one, by columns.

    Args:
        path: The file.
        head: First columns.
        rows: Rows from a checkpoint; the file is rewritten from them.
    """

    def __init__(self, path: Path, head: tuple[str, ...], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.path, self.columns, self.rows = path, list(head), [dict(row) for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        for row in self.rows:
            self._add_columns(row)
        self._rewrite()

    def extend(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; new columns rewrite the file.

        Raises:
            DataError: Another command has removed or replaced the file.
        """
        self._check_unchanged()
        self.rows += rows
        if any(self._add_columns(row) for row in rows):
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerows(rows)
        self._size = self.path.stat().st_size

    def _check_unchanged(self) -> None:
        """Check that the file is as this table left it: a second `dvc exp run` in the folder removes or restores it."""
        os.getcwd()  # raises FileNotFoundError if the whole workspace was deleted, which is a stop
        if self.path.is_file() and self.path.stat().st_size == self._size:
            return
        raise DataError(
            f"{self.path} was removed or replaced while the training ran, as a second `dvc exp run` in the same folder "
            "does, which also changes params.yaml: set its values back and repeat the command, which resumes from the "
            "last checkpoint; experiments run side by side with --temp or --queue"
        )

    def _add_columns(self, row: Mapping[str, Any]) -> bool:
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
        self._size = self.path.stat().st_size


class History:
    """Losses per step and metrics per validation.

    Args:
        folder: Folder of `losses.csv` and `metrics.csv`.
        state: State from a checkpoint.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"losses": [], "metrics": []}
        losses = _to_rows(state["losses"])
        self.losses = CsvTable(folder / "losses.csv", ("step", "epoch", "time", "lr", "loss"), losses)
        self.metrics = CsvTable(folder / "metrics.csv", ("epoch", "step", "time"), state["metrics"])

    def state(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"losses": _to_columns(self.losses.rows), "metrics": self.metrics.rows}

    def add_losses(self, rows: list[dict[str, Any]]) -> None:
        """Add finished steps: step, epoch, time, lr, loss and each loss term."""
        self.losses.extend(rows)

    def add_metrics(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics on val by their names, and those on training samples with the prefix `train/`."""
        self.metrics.extend([{"epoch": epoch, "step": step, "time": now_ms(), **metrics}])


def _to_columns(rows: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Rows as tensors, one per column, for each sequence of rows with the same columns.

    Pickling the numbers of 400,000 steps one by one takes seconds at each save.
    """
    parts = []
    for names, part in groupby(rows, key=tuple):
        columns = zip(*(row.values() for row in part), strict=True)
        parts.append({name: torch.from_numpy(np.array(column)) for name, column in zip(names, columns, strict=True)})
    return parts


def _to_rows(parts: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Rows from `_to_columns`; rows of an older checkpoint are given back."""
    for part in parts:
        if not isinstance(next(iter(part.values())), Tensor):
            yield part
            continue
        for values in zip(*(column.tolist() for column in part.values()), strict=True):
            yield dict(zip(part, values, strict=True))


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class LossBuffer:
    """Losses that are still on the device, since reading each one would make every step wait for the device.

    Args:
        history: Receives the losses once they are read.
        index: Training split, for the names of the images of a batch whose loss is not finite.
    """

    def __init__(self, history: History, index: Index) -> None:
        self.history, self.index = history, index
        self._steps: list[tuple[dict[str, Any], Tensor, list[int]]] = []
        self._names: list[str] = []

    def add(self, row: dict[str, Any], total: Tensor, losses: Mapping[str, Tensor], images: list[int]) -> None:
        """Add one step.

        Args:
            row: Columns other than the losses.
            total: Tensor[], the total loss.
            losses: Tensor[] by name, its terms.
            images: Positions of the batch's images in the index.
        """
        self._names = ["loss", *losses]
        self._steps.append((row, torch.stack([total, *losses.values()]).detach(), images))

    def flush(self) -> dict[str, float]:
        """Read the losses, add them to the history, and return their means.

        Raises:
            DivergedError: A loss is not finite; the steps before it are in the history.
        """
        if not self._steps:
            return {}
        rows, losses, images = zip(*self._steps, strict=True)
        values = torch.stack(losses).cpu().tolist()
        rows = [row | dict(zip(self._names, v, strict=True)) for row, v in zip(rows, values, strict=True)]
        bad = next((i for i, v in enumerate(values) if not all(map(math.isfinite, v))), None)
        self.history.add_losses(rows[:bad])
        if bad is not None:
            files = ", ".join(self.index[i].file for share in distributed.gather(images[bad]) for i in share)
            terms = ", ".join(f"{name} {rows[bad][name]:g}" for name in self._names)
            raise DivergedError(
                f"the loss of step {rows[bad]['step']} is not finite ({terms}); images of the batch: "
                f"{files}. Lower optimizer.lr or set train.clip_gradients; the last checkpoint is kept"
            )
        self._steps = []
        return {name: sum(row[name] for row in rows) / len(rows) for name in self._names}


class Progress:
    """Progress of a training: one live line on a terminal, a log line every few steps elsewhere.

    Args:
        steps: Steps of the whole training.
        start: Steps already taken.
        every: Steps between log lines.
    """

    def __init__(self, steps: int, start: int, every: int) -> None:
        self.steps, self.start, self.every = steps, start, every
        self._timed_from: tuple[int, float] | None = None
        self._live: Any = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(), transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: int) -> None:
        """Record that a step was taken, for the ETA."""
        if self._timed_from is None and step - self.start >= UNTIMED_STEPS:
            self._timed_from = (step, time.monotonic())

    def show(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Show step, epoch, values, time per step and ETA."""
        parts = [f"step {step}/{self.steps}", f"epoch {epoch:.2f}"]
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        if self._timed_from is not None and step > self._timed_from[0]:
            per_step = (time.monotonic() - self._timed_from[1]) / (step - self._timed_from[0])
            parts += [
                f"{per_step * 1000:.0f} ms/step",
                f"eta {timedelta(seconds=round(per_step * (self.steps - step)))}",
            ]
        line = "  ".join(parts)
        if self._live is not None:
            self._live.update(line, refresh=True)
        elif step % self.every == 0 or step == self.steps:
            log.info(line)
