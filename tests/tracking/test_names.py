"""Names that MLflow takes, and where its store is locked."""

import math
from pathlib import Path

import pytest

from detection.tracking.naming import finite
from detection.tracking.store import artifact_home, lock_path, tracking_uri


def test_every_class_has_a_metric_of_its_own_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric

    classes = ["", ".", "..", "a/", "a//b", "/a", "C#", "C+", "C_", "nan", "猫", "n/a"]
    classes += ["x" * 400, "x" * 401, "x" * 191 + "/y"]  # the last is cut behind its slash
    values = {f"test/AP/{name}": number for number, name in enumerate(classes)} | {"test/AP/nan": math.nan}
    named = finite(values)
    assert sorted(named.values()) == [value for value in values.values() if value == value]
    for name, value in named.items():
        _validate_metric(name, value, 0, 0)
    assert named["test/AP/n/a"] == classes.index("n/a")
    assert finite(named) == named


def test_repositories_that_share_a_file_share_its_lock_and_the_files_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "one"))
    assert lock_path() == tmp_path / "one/mlflow.db.lock"
    assert artifact_home(tracking_uri()) == tmp_path / "one/mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert lock_path() == tmp_path / "one/mlflow.db.lock"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared/rows.db")
    mine = lock_path()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "two"))
    assert lock_path() == mine == tmp_path / "shared/rows.db.lock"
    assert artifact_home(tracking_uri()) == tmp_path / "shared/mlartifacts"
