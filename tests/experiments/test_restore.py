"""From a row to its experiment, and what is said where there is none."""

from pathlib import Path

import pytest
from experiment_rooms import Project

from detection.errors import DataError
from detection.experiments.repository import Repository
from detection.experiments.restore import restore
from detection.params.reader import read_yaml


def test_a_row_comes_back_with_params_and_results(project: Project) -> None:
    better = Path("reports/evaluation/metrics.json").read_bytes()
    said = restore(project.rows["plain"], Repository())
    assert said.startswith("plain is in the workspace")
    assert read_yaml("params.yaml")["model"] == "fasterrcnn_resnet18"
    assert Path("models/detector.pt").read_bytes() == b"weights of fasterrcnn_resnet18"
    assert Path("reports/evaluation/metrics.json").read_bytes() != better
    restore("better", Repository())
    assert Path("reports/evaluation/metrics.json").read_bytes() == better


def test_work_that_is_not_committed_is_not_overwritten(project: Project) -> None:
    stage = Path("toy_stage.py")
    before = stage.read_text()
    try:
        stage.write_text(before + "# an idea\n")
        with pytest.raises(DataError, match=r"toy_stage.py: changes that are not committed.*git stash"):
            restore("plain", Repository())
        assert stage.read_text().endswith("# an idea\n")
    finally:
        stage.write_text(before)


def test_a_row_without_experiment_says_what_makes_it_again(project: Project, tmp_path: Path) -> None:
    from detection.experiments.runs import open_store

    store, head = open_store(), Repository().head()
    assert store is not None
    client, row = store.client, project.rows["lost"]
    client.log_param(row, "model", "fcos")
    client.log_param(row, "seed", "7")
    said = restore("lost", Repository())
    assert f"git checkout {str(head)[:10]}\n  dvc exp run -S model=fcos -S seed=7\n" in said
    changed = project.run("git", "show", "HEAD:params.yaml").stdout.replace("seed: 0\n", "seed: 3\n", 1)
    (tmp_path / "params.yaml").write_text(changed)
    client.log_artifact(row, str(tmp_path / "params.yaml"))
    client.set_tag(row, "git.dirty", "true")
    said = restore("lost", Repository())
    assert said.splitlines()[2:] == [
        "  dvc exp run -S seed=3",
        "Its code had changes that were not committed, so that the result may differ.",
    ]


def test_a_row_in_a_commit(project: Project) -> None:
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
        said = restore(project.rows["plain"], Repository())
        assert f"git checkout {rev[:10]} && dvc checkout" in said
    finally:
        run("git", "update-ref", ref, held)
        run("git", "branch", "-qD", "kept")


def test_a_row_that_is_not_there(project: Project) -> None:
    with pytest.raises(DataError, match="there is no row and no experiment 'nobody'"):
        restore("nobody", Repository())


def test_params_that_were_not_committed_can_still_be_read(project: Project) -> None:
    params = Path("params.yaml")
    params.write_text(edited := params.read_text() + "# my own\n")
    said = restore("plain", Repository())
    assert params.read_text() != edited
    (line,) = [line for line in said.splitlines() if line.startswith("  git show ")]
    assert project.run(*line.split()).stdout == edited
