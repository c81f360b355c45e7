"""examples/slurm/sweep.sbatch with two tasks at once; two clones stand for two machines."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detection.tracking.store import import_mlflow
from tests.soak.clones import Clone
from tests.tracking.team.conftest import ROOT, TIMEOUT, Team

PROGRAMS = {"make": "mkdir -p .venv/bin && touch .venv/bin/activate", "srun": 'shift && exec "$@"'}
"""Stand-ins: this environment is installed already, and there is no scheduler."""
REMOTE = "dvc remote add --force --default team s3://team/sweep && dvc remote modify team endpointurl {}"


def test_two_tasks_of_an_array(team: Team, git_remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    for key, value in team.environment("admin").items():
        monkeypatch.setenv(key, value)
    env = Clone(tmp_path).environment(GIT_URL=str(git_remote), SCRATCH=str(tmp_path), SLURM_ARRAY_JOB_ID="7")
    env |= team.environment("admin") | {"PATH": f"{programs}:{env['PATH']}", "PYTHONPATH": "."}
    env["MLFLOW_EXPERIMENT_NAME"] = "sweep"

    subprocess.run(["git", "clone", "-q", git_remote, tmp_path / "setup"], check=True)
    script = f"{REMOTE.format(team.s3.url)} && git commit -qam 'DVC remote' && git push -q origin HEAD"
    subprocess.run(["bash", "-c", script], cwd=tmp_path / "setup", env=env, check=True)
    (tmp_path / "settings.tsv").write_text("sweep-1\t-S seed=11\nsweep-2\t-S seed=12 -S train.log_every=2\n")

    def task(number: int) -> None:
        words = [*TIMEOUT, "bash", str(ROOT / "examples/slurm/sweep.sbatch"), str(tmp_path / "settings.tsv")]
        done = subprocess.run(
            words, cwd=tmp_path, env=env | {"SLURM_ARRAY_TASK_ID": str(number)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(task, (1, 2)))

    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], cwd=git_remote, capture_output=True, text=True).stdout
    assert {"sweep-1", "sweep-2"} <= {line.rsplit("/", 1)[1] for line in refs.splitlines()}
    client = import_mlflow().MlflowClient(tracking_uri=team.uri)
    experiment = client.get_experiment_by_name("sweep").experiment_id
    runs = client.search_runs([experiment], "tags.`dvc.exp_name` LIKE 'sweep-%'")
    assert {(run.data.tags["dvc.exp_name"], run.data.params["seed"], run.info.status) for run in runs} == {
        ("sweep-1", "11", "FINISHED"),
        ("sweep-2", "12", "FINISHED"),
    }
    assert not list(tmp_path.glob("detection-7-*"))  # pushed clones are removed
