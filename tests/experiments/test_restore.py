"""Restore the experiment of an MLflow run, or the commands that reproduce it."""

import json
import os
from pathlib import Path

import pytest

from detection.errors import DataError
from detection.experiments.repository import Repository
from detection.experiments.restore import restore
from detection.params.reader import read_yaml
from tests.experiment_projects import Project


def test_params_and_results_of_a_run_are_restored(project: Project) -> None:
    better = Path("reports/evaluation/metrics.json").read_bytes()
    text = restore(project.run_ids["plain"], Repository())
    assert text.startswith("plain is in the workspace")
    assert read_yaml("params.yaml")["model"] == "fasterrcnn_resnet18"
    assert Path("models/detector.pt").read_bytes() == b"weights of fasterrcnn_resnet18"
    assert Path("reports/evaluation/metrics.json").read_bytes() != better
    restore("better", Repository())
    assert Path("reports/evaluation/metrics.json").read_bytes() == better


def test_uncommitted_changes_are_not_overwritten(project: Project) -> None:
    stage = Path("toy_stage.py")
    before = stage.read_text()
    try:
        stage.write_text(before + "# an idea\n")
        with pytest.raises(DataError, match=r"uncommitted changes in toy_stage.py.*git stash"):
            restore("plain", Repository())
        assert stage.read_text().endswith("# an idea\n")
    finally:
        stage.write_text(before)


def test_what_dvc_no_longer_has_leaves_the_workspace_as_it_is(project: Project) -> None:
    before = Path("params.yaml").read_bytes(), Path("models/detector.pt").read_bytes()
    (cached,) = (
        one
        for one in project.folder.glob(".dvc/cache/files/md5/*/*")
        if one.is_file() and one.read_bytes() == b"weights of fasterrcnn_resnet18"
    )
    aside = cached.rename(cached.with_suffix(".aside"))
    try:
        with pytest.raises(DataError, match=r"plain: models/detector.pt is neither .* stays as it is"):
            restore("plain", Repository())
    finally:
        aside.rename(cached)
    assert before == (Path("params.yaml").read_bytes(), Path("models/detector.pt").read_bytes())


def test_a_running_experiment_is_not_overwritten(project: Project) -> None:
    lock = Path(".dvc/tmp/rwlock")
    before = lock.read_text() if lock.exists() else "{}"
    detector = str(project.folder.resolve() / "models/detector.pt")
    lock.write_text(json.dumps({"write": {detector: {"pid": os.getpid(), "cmd": "dvc exp run"}}, "read": {}}))
    try:
        with pytest.raises(DataError, match="`dvc exp run` is running in this workspace"):
            restore("plain", Repository())
    finally:
        lock.write_text(before)


def test_a_run_without_an_experiment_gives_commands(project: Project, tmp_path: Path) -> None:
    from detection.experiments.find import open_store

    store, head = open_store(), Repository().head()
    assert store is not None
    client, run_id = store.client, project.run_ids["lost"]
    client.log_param(run_id, "model", "fcos")
    client.log_param(run_id, "seed", "7")
    text = restore("lost", Repository())
    assert f"git checkout {str(head)[:10]}\n  dvc exp run -S model=fcos -S seed=7\n" in text
    changed = project.run("git", "show", "HEAD:params.yaml").stdout.replace("seed: 0\n", "seed: 3\n", 1)
    (tmp_path / "params.yaml").write_text(changed)
    client.log_artifact(run_id, str(tmp_path / "params.yaml"))
    client.set_tag(run_id, "git.dirty", "true")
    text = restore("lost", Repository())
    assert text.splitlines()[2:] == [
        "  dvc exp run -S seed=3",
        "Its code had uncommitted changes, so the result may differ.",
    ]


def test_a_run_recorded_in_a_commit(project: Project) -> None:
    run = project.run
    run("dvc", "exp", "apply", "plain")
    run("git", "checkout", "-qb", "kept")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "kept")
    rev = run("git", "rev-parse", "HEAD").stdout.strip()
    run("git", "checkout", "-q", "-")
    ref = next(one.split()[1] for one in run("git", "show-ref").stdout.splitlines() if one.endswith("/plain"))
    held = run("git", "rev-parse", ref).stdout.strip()
    run("git", "update-ref", "-d", ref)
    try:
        text = restore(project.run_ids["plain"], Repository())
        assert f"git checkout {rev[:10]} && dvc checkout" in text
    finally:
        run("git", "update-ref", ref, held)
        run("git", "branch", "-qD", "kept")


def test_an_unknown_run_is_an_error(project: Project) -> None:
    with pytest.raises(DataError, match="no MLflow run and no experiment 'nobody'"):
        restore("nobody", Repository())


def test_uncommitted_params_remain_readable(project: Project) -> None:
    params = Path("params.yaml")
    params.write_text(edited := params.read_text() + "# my own\n")
    text = restore("plain", Repository())
    assert params.read_text() != edited
    (line,) = [line for line in text.splitlines() if line.startswith("  git show ")]
    assert project.run(*line.split()).stdout == edited
