import csv
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.data.loading.index import Record, pack
from detection.errors import DataError, DivergedError
from detection.training.common.history import CsvTable, History, LossBuffer, Progress


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_grows_by_rows_and_columns_and_is_on_disk_at_once(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "new" / "t.csv", ("step",))
    assert (tmp_path / "new" / "t.csv").read_text() == "step\n"
    table.extend([{"step": 1, "loss": 0.5}])
    table.extend([{"step": 2, "loss": 0.25}, {"step": 3, "loss": 0.125}])
    assert [row["loss"] for row in read(table.path)] == ["0.5", "0.25", "0.125"]
    table.extend([{"step": 4, "loss": 1.0, "extra": 2}])
    assert [row["extra"] for row in read(table.path)] == ["", "", "", "2"]


def test_a_resumed_table_is_what_the_checkpoint_knows(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv", ("step",))
    table.extend([{"step": i, "loss": float(i)} for i in range(5)])
    again = CsvTable(tmp_path / "t.csv", ("step",), table.rows[:3])
    again.extend([{"step": 3, "loss": 3.0}])
    assert [row["step"] for row in read(again.path)] == ["0", "1", "2", "3"]


def test_a_table_that_another_command_removes_or_replaces_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second `dvc exp run` in the folder removes the outputs, or restores those of the last commit."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    for text in (None, "step\n1\n2\n3\n"):
        table = CsvTable(Path("reports/t.csv"), ("step",))
        table.extend([{"step": 1}])
        table.extend([{"step": 2}])
        shutil.rmtree("reports")
        if text:
            Path("reports").mkdir()
            Path("reports/t.csv").write_text(text)
        with pytest.raises(DataError, match=r"reports/t\.csv was removed or replaced .* repeat the command") as error:
            table.extend([{"step": 3}])
        assert "\n" not in str(error.value)
    shutil.rmtree(workspace)
    with pytest.raises(FileNotFoundError):  # the whole workspace: `stop_with_workspace` handles it
        table.extend([{"step": 3}])


@pytest.mark.parametrize("old", [False, True])  # a checkpoint of rows, as they were saved before
def test_a_history_from_a_checkpoint_writes_the_same_file(old: bool, tmp_path: Path) -> None:
    history = History(tmp_path)
    rows: list[dict[str, Any]] = [
        {"step": i, "epoch": round(i / 7, 4), "time": 1_764_000_000_000 + i, "lr": 0.1 / 3, "loss": 1 / (i + 1)}
        for i in range(5)
    ]
    history.add_losses(rows[:3])
    history.add_losses([row | {"box": 2.5} for row in rows[3:]])
    before = history.losses.path.read_text()
    torch.save({"losses": history.losses.rows, "metrics": []} if old else history.state(), tmp_path / "state.pt")
    history.add_losses(rows)  # after the checkpoint: lost
    again = History(tmp_path, torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.losses.path.read_text() == before
    assert again.losses.rows == rows[:3] + [row | {"box": 2.5} for row in rows[3:]]


@pytest.fixture
def buffer(tmp_path: Path) -> LossBuffer:
    none = np.zeros(0, np.float32)
    records = [
        Record(f"{i}.jpg", str(i), 9, 9, none.reshape(0, 4), none.astype(int), none > 0, none > 0, none)
        for i in range(4)
    ]
    return LossBuffer(History(tmp_path), pack(records))


def add(buffer: LossBuffer, step: int, value: float) -> None:
    terms = {"class": torch.tensor(value), "box": torch.tensor(1.0)}
    row = {"step": step, "epoch": 0.1, "time": 5, "lr": 0.1}
    buffer.add(row, torch.tensor(value + 1), terms, [step % 4, 3])


def test_losses_wait_until_they_are_flushed(buffer: LossBuffer) -> None:
    assert buffer.flush() == {}
    add(buffer, 1, 1.0)
    add(buffer, 2, 3.0)
    assert buffer.history.losses.rows == []
    assert buffer.flush() == {"loss": 3.0, "class": 2.0, "box": 1.0}
    assert [row["class"] for row in buffer.history.losses.rows] == [1.0, 3.0]
    assert buffer.flush() == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_images(buffer: LossBuffer, value: float) -> None:
    add(buffer, 1, 1.0)
    add(buffer, 2, value)
    with pytest.raises(DivergedError, match=r"step 2 is not finite .*class (nan|inf).*: 2.jpg, 3.jpg"):
        buffer.flush()
    assert [row["step"] for row in buffer.history.losses.rows] == [1]


def test_progress_is_a_log_line_per_interval_without_a_terminal(caplog: Any) -> None:
    caplog.set_level("INFO")
    with Progress(steps=100, start=0, every=10) as progress:
        for step in range(1, 21):
            progress.step(step)
            progress.show(step, step / 10, {"loss": 1 / 3})
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("step 10/100  epoch 1.00  loss 0.3333  ")
    assert "ms/step" in lines[0]
    assert "eta 0:0" in lines[0]


def test_progress_is_one_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Progress(steps=100, start=0, every=10) as progress:
        for step in range(1, 8):
            progress.step(step)
            progress.show(step, 0.5, {"loss": 0.5})
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)  # without colors and cursor moves
    assert "step 7/100" in shown
