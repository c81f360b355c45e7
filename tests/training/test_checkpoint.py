import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detection.errors import CheckpointError
from detection.training import checkpoint
from detection.training.checkpoint import Checkpoints, content_key


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "data.npz").write_bytes(b"data")
    (tmp_path / "code.py").write_text("x = 1")
    (tmp_path / "other.py").write_text("x = 1")
    (tmp_path / "detection/models").mkdir(parents=True)
    (tmp_path / "detection/models/head.py").write_text("x = 1")
    (tmp_path / "dvc.yaml").write_text(
        "stages: {train: {cmd: x, deps: [data.npz, code.py, detection/models]}}"
    )
    return tmp_path


def test_the_key_hangs_on_values_data_and_code_and_nothing_else(pipeline: Path) -> None:
    key = content_key("train", {"lr": 0.1}, pipeline)
    assert content_key("train", {"lr": 0.1}, pipeline) == key
    assert content_key("train", {"lr": 0.2}, pipeline) != key
    (pipeline / "other.py").write_text("x = 2")
    assert content_key("train", {"lr": 0.1}, pipeline) == key
    (pipeline / "detection/models/notes.txt").write_text("no code")
    assert content_key("train", {"lr": 0.1}, pipeline) == key
    for name in ("data.npz", "code.py", "detection/models/head.py"):
        before = (pipeline / name).read_bytes()
        (pipeline / name).write_bytes(b"changed")
        assert content_key("train", {"lr": 0.1}, pipeline) != key
        (pipeline / name).write_bytes(before)
    assert content_key("train", {"lr": 0.1}, pipeline) == key


def test_a_file_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints("train", "a")
    with checkpoints.held():
        assert checkpoints.load("state.pt") is None
        checkpoints.save("state.pt", {"x": torch.ones(3)})

        def half(state: object, file: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", half)
            with pytest.raises(CheckpointError, match="No space left on device; free some disk"):
                checkpoints.save("state.pt", {"x": torch.zeros(3)})
        state = checkpoints.load("state.pt")
        assert state is not None
        assert torch.equal(state["x"], torch.ones(3))
        assert {f.name for f in checkpoints.folder.iterdir()} == {"lock", "state.pt"}


def test_a_disk_that_fills_up_while_it_is_written_leaves_what_was_there(root: Path) -> None:
    checkpoints = Checkpoints("train", "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoints.held():
        checkpoints.save("state.pt", {"x": torch.ones(3)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as far as a process can fill a disk
        try:
            with pytest.raises(
                CheckpointError,
                match="cannot be written: File too large; free some disk",
            ):
                checkpoints.save("state.pt", {"x": torch.zeros(1_000_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        state = checkpoints.load("state.pt")
        assert state is not None
        assert torch.equal(state["x"], torch.ones(3))
        assert not list(checkpoints.folder.glob("*.writing"))


def test_a_fresh_start_uses_nothing_and_is_another_training(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints("train", "a").held() as first:
        first.save("state.pt", {})
        first.mark_complete()
        (first.folder / "samples").mkdir()
        name = first.training()
    with Checkpoints("train", "a").held() as again:
        assert again.complete
        assert again.training() == name
    monkeypatch.setenv("DETECTION_FRESH", "1")
    with Checkpoints("train", "a").held() as fresh:
        assert {path.name for path in fresh.folder.iterdir()} == {"lock"}
        assert fresh.training() != name


def test_quick_experiments_do_not_prune_a_training_that_was_cut_off(root: Path) -> None:
    with Checkpoints("train", "long").held() as long:
        long.save("state.pt", {})
    for i in range(checkpoint.KEPT + 3):
        with Checkpoints("train", f"k{i}").held() as quick:
            quick.mark_complete()
    assert long.load("state.pt") == {}
    assert sum(1 for _ in long.folder.parent.iterdir()) == checkpoint.KEPT + 2  # it, and the one that pruned


def test_many_that_were_cut_off_together_all_go_on(root: Path) -> None:
    names = [f"k{i}" for i in range(checkpoint.KEPT + 3)]
    for _ in ("until the power failed", "and again"):
        for name in names:
            with Checkpoints("train", name).held() as one:
                one.save("state.pt", {})
    assert all(Checkpoints("train", name).load("state.pt") == {} for name in names)


def test_a_damaged_file_is_named(root: Path) -> None:
    checkpoints = Checkpoints("train", "a")
    with checkpoints.held():
        (checkpoints.folder / "state.pt").write_bytes(b"half")
        with pytest.raises(CheckpointError, match=r"state.pt cannot be read.*delete the folder"):
            checkpoints.load("state.pt")


def test_old_keys_go_and_held_ones_stay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Checkpoints("train", "held")
    with held.held():
        os.utime(held.folder, (1, 1))
        for i in range(checkpoint.KEPT + 3):
            with Checkpoints("train", f"k{i}").held() as one:
                one.save("state.pt", {})
            os.utime(one.folder, (1000 + i, 1000 + i))
        with Checkpoints("train", "new").held():
            names = {f.name for f in (root / ".checkpoints" / "train").iterdir()}
    assert "held" in names
    assert "new" in names
    assert "k0" not in names
    assert len(names - {"held"}) == checkpoint.KEPT


def test_a_second_process_with_the_same_key_waits(root: Path) -> None:
    code = (
        "from detection.training.checkpoint import Checkpoints\n"
        "with Checkpoints('train', 'k').held() as c: print('in', c.complete, flush=True)"
    )
    with Checkpoints("train", "k").held() as ours:
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not _waits_for_lock(other.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert other.poll() is None
        ours.mark_complete()
    assert other.communicate(timeout=60)[0] == "in True\n"


def _waits_for_lock(pid: int) -> bool:
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())
