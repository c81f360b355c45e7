"""A project below the root of git, a detached HEAD, scores of another detector, invalid YAML."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from detection.errors import DataError
from detection.experiments.find import Experiment
from detection.experiments.repository import RUN_JSONS, Repository, Workspace, read_params
from detection.pipeline import locked_code

LOCK = """
stages:
  train: {{outs: [{{path: models/detector.pt, md5: aa}}]}}
  evaluate: {{deps: [{{path: models/detector.pt, md5: {seen}}}]}}
"""


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of a larger repository, as `dvc init --subdir` creates it."""
    folder = tmp_path / "whole repository" / "part"
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    git("init", "-q", "..")
    return folder


def code_of(files: Workspace) -> object:
    return locked_code(files.read("dvc.lock"))


def git(*args: str) -> None:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@localhost")
    subprocess.run(["git", *identity, *args], check=True, capture_output=True)


def test_a_project_below_the_root_of_git_with_a_detached_head(part: Path) -> None:
    assert Repository().head() is None
    assert list(Repository().commits_of("f" * 32)) == [], "no commit yet"
    git("commit", "-qm", "first", "--allow-empty")
    git("checkout", "-q", "--detach")
    run_json = part / RUN_JSONS[0]
    run_json.parent.mkdir(parents=True)
    run_json.write_text(json.dumps({"run_id": "f" * 32}))
    git("add", ".")
    git("commit", "-qm", "second")
    repository = Repository()
    head = repository.head()
    assert head is not None
    assert repository.run_ids(head) == ["f" * 32]
    assert list(repository.commits_of("f" * 32)) == [head]


def test_scores_of_another_detector_are_refused(tmp_path: Path) -> None:
    experiment = Experiment(name="mine", files=Workspace(tmp_path))
    experiment.check_scored()  # no outputs yet
    (tmp_path / "dvc.lock").write_text(LOCK.format(seen="aa"))
    experiment.check_scored()
    (tmp_path / "dvc.lock").write_text(LOCK.format(seen="bb"))
    with pytest.raises(DataError, match=r"^mine: the detector was trained again .*`dvc repro`"):
        experiment.check_scored()


@pytest.mark.parametrize(("path", "read"), [("dvc.lock", code_of), ("params.yaml", read_params)])
def test_merge_conflicts_are_an_error_of_one_line(
    tmp_path: Path, path: str, read: Callable[[Workspace], object]
) -> None:
    (tmp_path / path).write_text("<<<<<<< HEAD\nmodel: a\n=======\nmodel: b\n>>>>>>> other\n")
    with pytest.raises(DataError, match=rf"^{path} is not valid YAML .*merge conflicts"):
        read(Workspace(tmp_path))
