"""End of a stage: exit code, one line for an error that the user can fix, no traceback after a signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = "import signal, time; from stages.entry import run\n"
START += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # ignored where the suite runs under nohup
WAIT = "def stage():\n  try:\n    print('on', flush=True)\n    time.sleep(60)\n  finally: print('closed')\n"


def start(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + code + "run(stage)"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_runs_the_cleanup_without_a_traceback(number: signal.Signals, code: int) -> None:
    process = start(WAIT)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "closed\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl")
def test_a_rank_whose_launcher_died_before_it_had_started_ends() -> None:
    alive = start("def stage(): print('on')\n", DETECTION_LAUNCHER=str(os.getpid()))
    assert alive.communicate(timeout=30) == ("on\n", "")
    orphan = start(WAIT, DETECTION_LAUNCHER="1")
    assert orphan.communicate(timeout=30) == ("", "")
    assert orphan.returncode == -signal.SIGTERM


def test_out_of_gpu_memory_is_one_line_with_the_fix() -> None:
    process = start("import torch\ndef stage(): raise torch.OutOfMemoryError('CUDA out of memory. Tried to …')\n")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: out of GPU memory: raise train.accumulate")
    assert "train.validate_batch_size" in err
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line_with_the_fix() -> None:
    process = start("def stage():\n  with open('/dev/full', 'w') as file: file.write('x')\n")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("error: No space left on device; ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("touch params.yaml", None),
        ("sed -i s/other:.0/other:\\ 1/ params.yaml", None),
        ("sed -i s/seed:.0/seed:\\ 7/ params.yaml", "params.yaml: seed changed from 0 to 7 while train ran"),
        ("sed -i s/lr:.1/lr:\\ 2/ params.yaml", "params.yaml: models.a.lr changed from 1 to 2 while train ran"),
        ("sed -i s/model:.a/model:\\ b/ params.yaml", None),
        ("echo '# edited' >> detection/fpn.py", "detection/fpn.py changed while train ran"),
        ("touch detection/new.py", "detection/new.py changed while train ran"),
    ],
)
def test_dvc_does_not_record_what_changed_meanwhile(tmp_path: Path, edit: str, message: str | None) -> None:
    """DVC hashes code and params when a stage has ended."""
    (tmp_path / "detection").mkdir()
    (tmp_path / "detection/fpn.py").write_text("")
    (tmp_path / "params.yaml").write_text("model: a\nseed: 0\nother: 0\nmodels: {a: {lr: 1}, b: {lr: 3}}\n")
    code = "import subprocess; from stages.entry import run; from pathlib import Path\n"
    code += f"def stage(): Path('out').write_text(''); subprocess.run({edit!r}, shell=True, check=True)\nrun(stage)\n"
    (tmp_path / "stage.py").write_text(code)
    stage = {"cmd": f"{sys.executable} stage.py", "deps": ["detection"], "outs": ["out"]}
    stage["params"] = ["seed", "models.${model}"]
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"train": stage}}))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, env=environment, check=True)
    done = subprocess.run([*dvc, "repro"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (tmp_path / "dvc.lock").exists() == (message is None), done.stderr
    if message:
        assert f"error: {message}, and DVC would record" in done.stderr
