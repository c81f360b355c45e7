"""End of a stage: exit code, one line for an error that the user can fix, no traceback after a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = "import time; from stages.entry import run\n"
WAIT = "def stage():\n  try:\n    print('on', flush=True)\n    time.sleep(60)\n  finally: print('closed')\n"


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + code + "run(stage)"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_runs_the_cleanup_without_a_traceback(number: signal.Signals, code: int) -> None:
    process = start(WAIT)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "closed\n", "")


def test_out_of_gpu_memory_is_one_line_with_the_fix() -> None:
    process = start("import torch\ndef stage(): raise torch.OutOfMemoryError('CUDA out of memory. Tried to …')\n")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: out of GPU memory: raise train.accumulate")
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line_with_the_fix() -> None:
    process = start("def stage():\n  with open('/dev/full', 'w') as file: file.write('x')\n")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("error: No space left on device; ")
    assert err.count("\n") == 1
