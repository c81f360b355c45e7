"""Layout, locks, temporary folders and files."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from detection.files import (
    LockedTemporaryDirectory,
    data_root,
    dvc_root,
    read_json,
    read_table,
    save_weights,
    write_json,
)

HOLD_A_FOLDER = """
import time
from detection.files import LockedTemporaryDirectory
folder = LockedTemporaryDirectory("t-")
print(folder.name, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("with_files", [False, True])
def test_abandoned_folders_are_deleted_and_locked_ones_are_kept(
    with_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HOLD_A_FOLDER]
    killed, alive = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in "ab")
    try:
        folders = []
        for process in (killed, alive):
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with LockedTemporaryDirectory("t-") as young:
            assert all(folder.is_dir() for folder in folders), "a young empty folder may not be locked yet"
        if with_files:
            for folder in folders:
                (folder / "copy.csv").write_text("left")
        else:
            for folder in folders:
                os.utime(folder, (1, 1))
        with LockedTemporaryDirectory("t-") as own:
            assert set(tmp_path.iterdir()) == {folders[1], Path(own)}
        assert set(tmp_path.iterdir()) == {folders[1]}
        assert young != own
    finally:
        for process in (killed, alive):
            process.kill()
            process.communicate()


def test_roots_follow_the_environment_and_the_nearest_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "repo/a/b"
    inner.mkdir(parents=True)
    (tmp_path / "repo/.dvc").mkdir()
    monkeypatch.chdir(inner)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert dvc_root() == tmp_path / "repo"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert data_root() == tmp_path / "main/data/raw"
    monkeypatch.setenv("DATA_ROOT", "elsewhere")
    assert data_root() == tmp_path / "main/elsewhere"


def test_json_is_written_whole_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "new/values.json"
    assert read_json(path) == {}
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_an_oserror_with_the_file_name(tmp_path: Path) -> None:
    path, before = tmp_path / "detector.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the file size limit of this process
    try:
        with pytest.raises(OSError, match="File too large") as full:
            save_weights(path, {"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(path))
    save_weights(path, {"x": torch.ones(3)})
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(3))


def test_class_names_that_look_like_numbers_are_text(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("actual,predicted,count\n01,1,3\n1.0,nan,\n")
    table = read_table(tmp_path / "table.csv")
    assert table is not None
    assert table["actual"].tolist() == ["01", "1.0"]
    assert table["predicted"].tolist() == ["1", "nan"]
    assert table["count"].isna().tolist() == [False, True]
