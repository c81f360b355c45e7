"""An experiment by all the names it has, and its files wherever they lie."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from experiment_rooms import Project

from detection.errors import DataError
from detection.experiments.contents import RunFiles, read_json
from detection.experiments.find import Experiment, commits_of, experiments_of, find
from detection.experiments.repository import Repository
from detection.experiments.runs import open_store

METRICS, DETECTIONS = "reports/evaluation/metrics.json", "reports/evaluation/detections.json"


def look(name: str) -> Experiment:
    return find(name, Repository())


def test_every_name_leads_to_the_same_experiment(project: Project) -> None:
    by_name, by_row, by_row_name = look("better"), look(project.rows["better"]), look("better")
    assert by_name.rev == by_row.rev == by_row_name.rev is not None
    assert look(by_name.rev).rev == look(by_name.rev[:9]).rev == by_name.rev
    assert by_name.run_id() == project.rows["better"]
    assert by_name.rev != look("plain").rev


def test_files_of_a_revision_and_of_the_workspace(project: Project) -> None:
    plain, better, workspace = look("plain"), look("better"), look("workspace")
    assert better.files.read(METRICS) == Path(METRICS).read_bytes() == workspace.files.read(METRICS)
    assert better.files.read(DETECTIONS) == Path(DETECTIONS).read_bytes(), "DVC's cache, and not git, has it"
    assert plain.files.read(METRICS) != better.files.read(METRICS)
    assert plain.files.read("reports/model_card.md") is None
    assert look("HEAD").files.read(METRICS) is None, "nothing had run there"


def test_files_of_a_row_that_no_experiment_holds(project: Project, tmp_path: Path) -> None:
    store = open_store()
    assert store is not None
    (tmp_path / "metrics.json").write_text('{"AP": 0.25}')
    store.client.log_artifact(project.rows["lost"], str(tmp_path / "metrics.json"), "evaluation")
    lost = look("lost")
    assert isinstance(lost.files, RunFiles)
    assert read_json(lost.files, METRICS) == {"AP": 0.25}
    assert lost.files.read(DETECTIONS) is None
    store.client.log_artifact(project.rows["lost"], "dvc.lock")
    assert look("lost").files.read(DETECTIONS) == Path(DETECTIONS).read_bytes(), (
        "by its md5, out of the cache"
    )


def test_content_that_is_not_on_this_machine(project: Project) -> None:
    better = look("better")
    (lock,) = (one for one in project.folder.glob(".dvc/cache/files/md5/*/*") if _is(one, DETECTIONS))
    aside = lock.rename(lock.with_suffix(".aside"))
    try:
        with pytest.raises(DataError, match=r"neither in DVC's cache nor in a remote.*dvc pull"):
            better.files.read(DETECTIONS)
    finally:
        aside.rename(lock)


def _is(cached: Path, path: str) -> bool:
    return cached.is_file() and cached.read_bytes() == Path(path).read_bytes()


def test_a_slip_names_the_nearest(project: Project) -> None:
    with pytest.raises(DataError, match=r"beter.*did you mean.*better"):
        look("beter")
    for no_id in ("HEAD~99", "retinanet-my.data-abc1234"):  # MLflow refuses to look for such a row
        with pytest.raises(DataError, match="no experiment, row or git revision"):
            look(no_id)


def test_a_name_that_two_commits_have(project: Project) -> None:
    repository = Repository()
    rev, head = look("plain").rev, repository.head()
    other = repository.git("commit-tree", f"{head}^{{tree}}", "-m", "elsewhere", "-p", str(head)).strip()
    ref = f"refs/exps/{other[:2]}/{other[2:]}/plain"
    repository.git("update-ref", ref, str(look("better").rev))
    try:
        assert look("plain").rev == rev, "the one that started from HEAD"
        assert json.loads(look("plain").files.read(METRICS) or b"")["AP"] < 1
    finally:
        repository.git("update-ref", "-d", ref)


def test_a_row_is_where_the_scores_are_and_not_who_was_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for folder in (".dvc", "reports/train", "reports/evaluation"):
        (tmp_path / folder).mkdir(parents=True)

    def git(*words: str) -> str:
        identity = ("-c", "user.name=T", "-c", "user.email=t@localhost")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    commits = {}
    for scored, name in (("first-row", "plain"), ("second-row", "again")):  # the training is the same
        for stage, row in (("train", "first-row"), ("evaluation", scored)):
            (tmp_path / f"reports/{stage}/run.json").write_text(json.dumps({"run_id": row}))
        git("add", ".")
        git("commit", "-qm", name)
        commits[scored] = git("rev-parse", "HEAD")
        git("update-ref", f"refs/exps/{commits[scored][:2]}/{commits[scored][2:]}/{name}", "HEAD")
    for row, commit in commits.items():
        held = SimpleNamespace(info=SimpleNamespace(run_id=row), data=SimpleNamespace(tags={}))
        assert [one.rev for one in experiments_of(held, Repository())] == [commit]
        assert list(Repository().commits_of(row)) == [commit]
    tags = {"replaces_run": "first-row"}  # made again on an emptied store
    rebuilt = SimpleNamespace(info=SimpleNamespace(run_id="third-row"), data=SimpleNamespace(tags=tags))
    assert [one.name for one in experiments_of(rebuilt, Repository())] == ["plain"]
    assert list(commits_of(rebuilt, Repository())) == [commits["first-row"]]
