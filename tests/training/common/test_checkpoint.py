import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detection.errors import CheckpointError
from detection.training.common import checkpoint
from detection.training.common.checkpoint import Checkpoints, content_key


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_the_key_depends_on_values_data_and_code_and_nothing_else(tmp_path: Path) -> None:
    names = ("data/index.npz", "detection/models/a.py", "detection/models/notes.txt", "other.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: x, deps: [data/index.npz, detection/models]}}")
    key = content_key("train", {"lr": 0.1}, tmp_path)
    without_data = content_key("train", {"lr": 0.1}, tmp_path, without="data")
    assert content_key("train", {"lr": 0.1}, tmp_path) == key
    assert content_key("train", {"lr": 0.2}, tmp_path) != key
    for name in names:
        (tmp_path / name).write_text("changed")
        same = content_key("train", {"lr": 0.1}, tmp_path) == key
        same_without_data = content_key("train", {"lr": 0.1}, tmp_path, without="data") == without_data
        assert same == (name in ("detection/models/notes.txt", "other.py"))
        assert same_without_data == (name != "detection/models/a.py")
        (tmp_path / name).write_text("x = 1")
    (tmp_path / "detection/models/new.py").touch()
    assert content_key("train", {"lr": 0.1}, tmp_path) != key


def test_a_file_is_written_completely_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints("train", "a")
    with checkpoints.locked():
        assert checkpoints.load("state.pt") is None
        checkpoints.save("state.pt", {"x": torch.ones(3)})

        def half(state: object, file: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", half)
            with pytest.raises(CheckpointError, match="No space left on device"):
                checkpoints.save("state.pt", {"x": torch.zeros(3)})
        state = checkpoints.load("state.pt")
        assert state is not None
        assert torch.equal(state["x"], torch.ones(3))
        assert {f.name for f in checkpoints.folder.iterdir()} == {"lock", "state.pt"}


def test_a_disk_that_fills_up_during_a_write_leaves_the_previous_file(root: Path) -> None:
    checkpoints = Checkpoints("train", "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints.locked():
        checkpoints.save("state.pt", {"x": torch.ones(3)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as far as a process can fill a disk
        try:
            with pytest.raises(CheckpointError, match="File too large"):
                checkpoints.save("state.pt", {"x": torch.zeros(1_000_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        state = checkpoints.load("state.pt")
        assert state is not None
        assert torch.equal(state["x"], torch.ones(3))
        assert not list(checkpoints.folder.glob("*.writing"))


def test_a_fresh_start_deletes_everything_and_gets_a_new_training_id(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints("train", "a").locked() as first:
        first.save("state.pt", {})
        first.mark_complete()
        (first.folder / "samples").mkdir()
        training_id = first.training_id()
    with Checkpoints("train", "a").locked() as again:
        assert again.complete
        assert again.training_id() == training_id
    monkeypatch.setenv("DETECTION_FRESH", "1")
    with Checkpoints("train", "a").locked() as fresh:
        assert {path.name for path in fresh.folder.iterdir()} == {"lock"}
        assert fresh.training_id() != training_id


def test_short_experiments_do_not_prune_an_interrupted_training(root: Path) -> None:
    with Checkpoints("train", "long").locked() as long:
        long.save("state.pt", {})
    for i in range(checkpoint.KEYS_KEPT + 3):
        with Checkpoints("train", f"k{i}").locked() as quick:
            quick.mark_complete()
    assert long.load("state.pt") == {}
    assert sum(1 for _ in long.folder.parent.iterdir()) == checkpoint.KEYS_KEPT + 2  # and the one that pruned


def test_trainings_that_were_interrupted_together_are_all_kept(root: Path) -> None:
    names = [f"k{i}" for i in range(checkpoint.KEYS_KEPT + 3)]
    for _ in range(2):
        for name in names:
            with Checkpoints("train", name).locked() as one:
                one.save("state.pt", {})
    assert all(Checkpoints("train", name).load("state.pt") == {} for name in names)


def test_a_damaged_file_and_one_of_another_format_are_refused_in_one_line(root: Path) -> None:
    checkpoints = Checkpoints("train", "a")
    with checkpoints.locked():
        (checkpoints.folder / "state.pt").write_bytes(b"half")
        with pytest.raises(CheckpointError, match=r"state\.pt cannot be read.*delete"):
            checkpoints.load("state.pt")
        for content in ({"model": torch.ones(3)}, {"format": checkpoint.FORMAT + 1, "model": torch.ones(3)}):
            torch.save(content, checkpoints.folder / "state.pt")
            with pytest.raises(CheckpointError, match=r"state\.pt has checkpoint format.*delete") as refused:
                checkpoints.load("state.pt")
            assert "\n" not in str(refused.value)


def test_old_keys_are_pruned_and_locked_ones_stay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = Checkpoints("train", "locked")
    with locked.locked():
        os.utime(locked.folder, (1, 1))
        for i in range(checkpoint.KEYS_KEPT + 3):
            with Checkpoints("train", f"k{i}").locked() as one:
                one.save("state.pt", {})
            os.utime(one.folder, (1000 + i, 1000 + i))
        with Checkpoints("train", "new").locked():
            names = {f.name for f in (root / ".checkpoints" / "train").iterdir()}
    assert "locked" in names
    assert "new" in names
    assert "k0" not in names
    assert len(names - {"locked"}) == checkpoint.KEYS_KEPT


def test_a_second_process_with_the_same_key_waits(root: Path) -> None:
    code = (
        "from detection.training.common.checkpoint import Checkpoints\n"
        "with Checkpoints('train', 'k').locked() as c: print('in', c.complete, flush=True)"
    )
    with Checkpoints("train", "k").locked() as ours:
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not _waits_for_lock(other.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert other.poll() is None
        ours.mark_complete()
    assert other.communicate(timeout=60)[0] == "in True\n"


def _waits_for_lock(pid: int) -> bool:
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())
