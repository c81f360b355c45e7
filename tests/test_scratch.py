"""Temporary folders of processes that were killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from detection.files import LockedTemporaryDirectory

LIVES = """
import time
from detection.files import LockedTemporaryDirectory as Scratch
folder = Scratch("t-")
print(folder.name, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_left_is_deleted_and_what_a_live_one_holds_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    killed, alive = (
        subprocess.Popen([sys.executable, "-c", LIVES], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in "ab"
    )
    try:
        folders = []
        for process in (killed, alive):
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (folders[0] / "copy.csv").write_text("left")
        with LockedTemporaryDirectory("t-") as young:
            assert all(folder.is_dir() for folder in folders), "it may not have come to lock it yet"
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
