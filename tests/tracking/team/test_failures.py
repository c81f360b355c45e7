"""Rejected logins and unavailable servers: one warning, training continues, `detection sync` sends the rest."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection.files import REPORTS_TRAIN, write_json
from detection.params import Params
from detection.tracking.lifecycle import log_training_artifacts, open_run, sync_workspace
from detection.tracking.store import import_mlflow
from tests.soak.servers import Process
from tests.tracking.team.conftest import AUTH, AUTH_VARIABLES, PASSWORDS, Team, bucket, start_mlflow

STEPS = list(range(1, 51))
Train = Callable[..., None]
Login = Callable[..., None]


@pytest.fixture
def login(team: Team, repo: Path, monkeypatch: pytest.MonkeyPatch) -> Login:
    """Set the variables of a member's shell."""

    def set_variables(user: str, password: str | None = None) -> None:
        for key, value in team.environment(user, password).items():
            monkeypatch.setenv(key, value)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "failures")
    return set_variables


@pytest.fixture
def app(team: Team, login: Login) -> Any:
    """MLflow's client for users and permissions, as the administrator, with the members carl and dana."""
    login("admin")
    client = app_client(team.uri)
    for user in ("carl", "dana"):
        create_user(client, user)
    return client


def app_client(uri: str) -> Any:
    from mlflow.server import get_app_client

    with warnings.catch_warnings(action="ignore"):  # imports the server with its deprecated parts
        return get_app_client("basic-auth", uri)


def create_user(app: Any, user: str) -> None:
    from mlflow.exceptions import RestException

    try:
        app.create_user(user, PASSWORDS[user])
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def complete(uri: str, run_id: str) -> None:
    """Check that a run is FINISHED and has each step once."""
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == STEPS
    assert run.data.metrics["test/AP"] == 0.4
    assert {entry.path for entry in client.list_artifacts(run_id)} >= {"params.yaml", "train"}
    same = client.search_runs([run.info.experiment_id], f"tags.training_id = '{run.data.tags['training_id']}'")
    assert [one.info.run_id for one in same] == [run_id]


def evaluated() -> None:
    """The reports of a finished training and its evaluation."""
    write_json(REPORTS_TRAIN / "metrics.json", {"steps": 50})
    tables = Path("reports/evaluation/tables")
    write_json(tables / "mlflow_metrics.json", {"test/AP": 0.4})


def one_line(caplog: pytest.LogCaptureFixture, says: str) -> None:
    """Check that one warning names the cause, and that no line holds a password."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in lines if says in line], lines
    assert not [line for line in lines if "\n" in line or "Traceback" in line]
    assert not [line for line in lines for secret in PASSWORDS.values() if secret in line]


@pytest.mark.parametrize("user", ["carl", "nobody"])
def test_a_wrong_password(
    user: str, team: Team, app: Any, login: Login, params: Params, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    login(user, "forgotten-password-1")
    training = {"training_id": f"wrong-{user}"}
    with open_run(params, training) as run:
        train(run)
    write_json(REPORTS_TRAIN / "environment.json", training)
    evaluated()
    one_line(caplog, "refuses the credentials in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    login("carl")
    complete(team.uri, sync_workspace(params).run_id)


def test_a_password_that_changes_during_the_training(
    team: Team, app: Any, login: Login, params: Params, train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    login("dana")
    training = {"training_id": "expired"}
    with open_run(params, training) as run:
        login("admin")
        app.update_user_password("dana", "a-new-password-1")
        login("dana")
        train(run)
    login("admin")
    app.update_user_password("dana", PASSWORDS["dana"])
    write_json(REPORTS_TRAIN / "environment.json", training)
    evaluated()
    one_line(caplog, "refuses the credentials")
    login("dana")
    complete(team.uri, sync_workspace(params).run_id)


@pytest.fixture
def private_server(team: Team, tmp_path: Path) -> Iterator[Process]:
    """An MLflow server on which a member may only read what others have created, MLflow's default."""
    database = f"sqlite:///{tmp_path}/server.db"
    auth = AUTH.format(database=database, password=PASSWORDS["admin"]).replace("= EDIT", "= READ")
    (tmp_path / "auth.ini").write_text(auth)
    more = AUTH_VARIABLES | {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini")}
    server = start_mlflow(tmp_path, database, "s3://team/private", team.s3, ["--app-name", "basic-auth"], more)
    yield server
    server.kill()


def test_a_user_who_may_only_read(
    private_server: Process, login: Login, params: Params, train: Train, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    login("admin")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", private_server.url)
    client = import_mlflow().MlflowClient(tracking_uri=private_server.url)
    experiment = client.create_experiment("failures")
    app = app_client(private_server.url)
    create_user(app, "dana")
    login("dana")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", private_server.url)
    training = {"training_id": "reader"}
    with open_run(params, training) as run:
        train(run)
    write_json(REPORTS_TRAIN / "environment.json", training)
    evaluated()
    one_line(caplog, "denies this user the access")
    login("admin")
    app.grant_user_permission("dana", "experiment", experiment, "EDIT")
    login("dana")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", private_server.url)
    complete(private_server.url, sync_workspace(params).run_id)


def test_a_restart_in_the_middle(team: Team, app: Any, login: Login, params: Params, train: Train) -> None:
    login("carl")
    training = {"training_id": "restart"}
    with open_run(params, training) as run:
        team.mlflow.kill()
        train(run)
    write_json(REPORTS_TRAIN / "environment.json", training)
    evaluated()
    team.mlflow.start()
    complete(team.uri, sync_workspace(params).run_id)


@pytest.fixture
def open_server(team: Team, tmp_path: Path) -> Iterator[Process]:
    """An MLflow server without a login whose bucket does not exist."""
    server = start_mlflow(tmp_path, f"sqlite:///{tmp_path}/server.db", "s3://absent/mlflow", team.s3, [], {})
    yield server
    server.kill()


def test_a_bucket_that_does_not_exist(
    team: Team, open_server: Process, repo: Path, params: Params, train: Train, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", open_server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    training = {"training_id": "bucket"}
    with open_run(params, training) as run:
        train(run)
        log_training_artifacts(run)
    write_json(REPORTS_TRAIN / "environment.json", training)
    evaluated()
    one_line(caplog, "MLflow")
    client = import_mlflow().MlflowClient(tracking_uri=open_server.url)
    assert [point.step for point in client.get_metric_history(run.id, "loss")] == STEPS  # curves need no bucket
    bucket(team.s3, "absent")
    complete(open_server.url, sync_workspace(params).run_id)
