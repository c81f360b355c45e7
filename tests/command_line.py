"""`detection` as a process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def detection(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `detection` in a folder, without DVC_ROOT and DATA_ROOT."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "DATA_ROOT")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "detection.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Check that a command failed with one line on stderr; return it."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
