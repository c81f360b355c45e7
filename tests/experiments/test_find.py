"""Find an experiment by all of its names, and read its files wherever they are stored."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from detection.errors import DataError
from detection.experiments.find import Experiment, commits_of, experiments_of, find, open_store
from detection.experiments.repository import Repository, RunFiles, read_json
from detection.files import EVALUATION_RUN_JSON, TRAIN_RUN_JSON
from tests.experiment_projects import Project

METRICS, DETECTIONS = "reports/evaluation/metrics.json", "reports/evaluation/tables/detections.json"


def look(name: str) -> Experiment:
    return find(name, Repository())


def test_every_name_leads_to_the_same_experiment(project: Project) -> None:
    by_name, by_run = look("better"), look(project.run_ids["better"])
    assert by_name.rev is not None
    assert by_name.rev == by_run.rev
    assert look(by_name.rev).rev == look(by_name.rev[:9]).rev == by_name.rev
    assert by_name.run_id() == project.run_ids["better"]
    assert by_name.rev != look("plain").rev


def test_files_of_a_revision_and_of_the_workspace(project: Project) -> None:
    plain, better, workspace = look("plain"), look("better"), look("workspace")
    assert better.files.read(METRICS) == Path(METRICS).read_bytes() == workspace.files.read(METRICS)
    assert better.files.read(DETECTIONS) == Path(DETECTIONS).read_bytes(), "from DVC's cache"
    assert plain.files.read(METRICS) != better.files.read(METRICS)
    assert plain.files.read("reports/model_card.md") is None
    assert look("HEAD").files.read(METRICS) is None, "no stage has run at that commit"


def test_files_of_a_run_without_an_experiment(project: Project, tmp_path: Path) -> None:
    store = open_store()
    assert store is not None
    (tmp_path / "metrics.json").write_text('{"AP": 0.25}')
    store.client.log_artifact(project.run_ids["lost"], str(tmp_path / "metrics.json"), "evaluation")
    lost = look("lost")
    assert isinstance(lost.files, RunFiles)
    assert read_json(lost.files, METRICS) == {"AP": 0.25}
    assert lost.files.read(DETECTIONS) is None
    store.client.log_artifact(project.run_ids["lost"], "dvc.lock")
    assert look("lost").files.read(DETECTIONS) == Path(DETECTIONS).read_bytes(), "by its md5, from DVC's cache"


def test_content_missing_on_this_machine_is_an_error(project: Project) -> None:
    better = look("better")
    (lock,) = (one for one in project.folder.glob(".dvc/cache/files/md5/*/*") if _is(one, DETECTIONS))
    aside = lock.rename(lock.with_suffix(".aside"))
    try:
        with pytest.raises(DataError, match=r"neither in DVC's cache nor in a remote.*dvc push"):
            better.files.read(DETECTIONS)
        store = open_store()
        assert store is not None
        store.client.log_artifact(project.run_ids["better"], DETECTIONS, "evaluation/tables")
        assert better.files.read(DETECTIONS) == Path(DETECTIONS).read_bytes(), "from the MLflow run"
    finally:
        aside.rename(lock)
        shutil.rmtree(project.folder / "mlartifacts" / project.run_ids["better"], ignore_errors=True)


def _is(cached: Path, path: str) -> bool:
    return cached.is_file() and cached.read_bytes() == Path(path).read_bytes()


def test_an_unknown_name_suggests_the_nearest(project: Project) -> None:
    with pytest.raises(DataError, match=r"beter.*did you mean.*better"):
        look("beter")
    for unknown in ("HEAD~99", "retinanet-my.data-abc1234"):  # MLflow rejects it as a run id
        with pytest.raises(DataError, match="no experiment, MLflow run or git revision"):
            look(unknown)


def test_of_two_experiments_with_one_name_the_one_from_head_is_found(project: Project) -> None:
    repository = Repository()
    rev, head = look("plain").rev, repository.head()
    other = repository.git("commit-tree", f"{head}^{{tree}}", "-m", "elsewhere", "-p", str(head)).strip()
    ref = f"refs/exps/{other[:2]}/{other[2:]}/plain"
    repository.git("update-ref", ref, str(look("better").rev))
    try:
        assert look("plain").rev == rev, "started from HEAD"
        assert json.loads(look("plain").files.read(METRICS) or b"")["AP"] < 1
    finally:
        repository.git("update-ref", "-d", ref)


def test_a_run_belongs_to_the_experiment_whose_evaluation_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for folder in (".dvc", "reports/train", "reports/evaluation"):
        (tmp_path / folder).mkdir(parents=True)

    def git(*args: str) -> str:
        identity = ("-c", "user.name=T", "-c", "user.email=t@localhost")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    commits = {}
    for scored, name in (("first-run", "plain"), ("second-run", "again")):  # the same training
        for path, run_id in ((TRAIN_RUN_JSON, "first-run"), (EVALUATION_RUN_JSON, scored)):
            (tmp_path / path).write_text(json.dumps({"run_id": run_id}))
        git("add", ".")
        git("commit", "-qm", name)
        commits[scored] = git("rev-parse", "HEAD")
        git("update-ref", f"refs/exps/{commits[scored][:2]}/{commits[scored][2:]}/{name}", "HEAD")
    for run_id, commit in commits.items():
        run = SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags={}))
        assert [one.rev for one in experiments_of(run, Repository())] == [commit]
        assert list(Repository().commits_of(run_id)) == [commit]
    tags = {"replaces_run": "first-run"}  # recreated on an empty store
    recreated = SimpleNamespace(info=SimpleNamespace(run_id="third-run"), data=SimpleNamespace(tags=tags))
    assert [one.name for one in experiments_of(recreated, Repository())] == ["plain"]
    assert list(commits_of(recreated, Repository())) == [commits["first-run"]]
