"""docs/team.md, from top to bottom, against real servers."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.team.conftest import PASSWORDS, ROOT, S3_KEYS, Team, shell

PAGE = ROOT / "docs/team.md"
SECRETS = [*PASSWORDS.values(), S3_KEYS["AWS_SECRET_ACCESS_KEY"]]


def blocks() -> dict[str, str]:
    """Shell blocks by the heading they stand under."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {
        text.split("\n", 1)[0]: re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for text in sections
    }
    return {heading: "".join(parts) for heading, parts in found.items() if parts}


@pytest.fixture(scope="module")
def outputs(team: Team, git_remote: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output of each section's commands, in the order of the page."""
    folder = tmp_path_factory.mktemp("members")
    subprocess.run(["git", "clone", "-q", git_remote, folder / "ann"], check=True)
    (folder / "ben").mkdir()
    local = {
        "https://git.example.com/team/detectors.git": str(git_remote),
        "https://s3.example.com": team.s3.url,
        "https://mlflow.example.com": team.uri,
        "KEY_ID": S3_KEYS["AWS_ACCESS_KEY_ID"],
        "SECRET_KEY": S3_KEYS["AWS_SECRET_ACCESS_KEY"],
    } | {f"{user.upper()}_PASSWORD": password for user, password in PASSWORDS.items()}

    def run(heading: str, workspace: Path, user: str) -> str:
        script = blocks()[heading]
        for there, here in local.items():
            script = re.sub(rf"(?<!\w){re.escape(there)}(?!\w)", here, script)
        return shell(script, workspace, user)

    server = blocks()["MLflow server"]
    assert server.count("mlflow server ") == 1
    local_server = server.partition("export MLFLOW_TRACKING_URI")[
        2
    ]  # the fixture has started the server with its words
    users = "export MLFLOW_TRACKING_URI" + local_server
    for there, here in local.items():
        users = re.sub(rf"(?<!\w){re.escape(there)}(?!\w)", here, users)
    return {
        "users": shell(users, folder / "ann", "admin"),
        "remote": run("DVC remote, once per repository", folder / "ann", "ann"),
        "ann": run("Ann trains and shares", folder / "ann", "ann"),
        "ben": run("Ben takes it over", folder / "ben", "ben"),
        "folder": str(folder),
    }


def client(team: Team, monkeypatch: pytest.MonkeyPatch) -> Any:
    from detection.tracking.store import import_mlflow

    for key, value in team.environment("admin").items():
        monkeypatch.setenv(key, value)
    return import_mlflow().MlflowClient(tracking_uri=team.uri)


def test_the_server_is_started_as_the_page_says(team: Team) -> None:
    """The fixture uses the page's options, with other addresses."""
    words = set(
        re.findall(r"--[a-z-]+", blocks()["MLflow server"].partition("mlflow server ")[2].partition("export")[0])
    )
    assert words - {"--host"} == {word for word in team.mlflow.words if word.startswith("--")} - {"--workers"}


def test_nothing_is_computed_again(outputs: dict[str, str]) -> None:
    skipped = re.findall(r"Stage '(\w+)' didn't change, skipping", outputs["ben"].partition("Ran experiment")[0])
    assert skipped[:5] == ["prepare", "pretrain", "train", "evaluate", "plots"]


def test_each_experiment_is_one_complete_run(
    outputs: dict[str, str], team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = client(team, monkeypatch)
    experiment = api.get_experiment_by_name("detection").experiment_id
    runs = api.search_runs([experiment], order_by=["attributes.start_time ASC"])
    assert [(run.data.tags["dvc.exp_name"], run.info.status) for run in runs] == [
        ("first", "FINISHED"),
        ("second", "FINISHED"),
    ]
    assert all("test/AP" in run.data.metrics for run in runs)
    assert "up to date" in outputs["ben"]
    assert api.get_model_version_by_alias("detector-shapes", "champion").run_id == runs[0].info.run_id


def test_both_experiments_are_compared_and_pushed(outputs: dict[str, str], git_remote: Path) -> None:
    assert "seed" in outputs["ben"]
    refs = subprocess.run(["git", "for-each-ref", "refs/exps"], cwd=git_remote, capture_output=True, text=True).stdout
    assert {line.rsplit("/", 1)[1] for line in refs.splitlines()} == {"first", "second"}


def test_no_credentials_anywhere(
    outputs: dict[str, str], team: Team, git_remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the repository, its experiments, logs, run tags or params, nor in the artifacts on S3."""
    import boto3

    said = "".join(outputs.values())
    assert not [secret for secret in SECRETS if secret in said]
    folder = Path(outputs["folder"])
    for path in (*folder.rglob("*"), *git_remote.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".pt":
            content = path.read_bytes()
            assert not [secret for secret in SECRETS if secret.encode() in content], path
    everything = subprocess.run(
        ["git", "grep", "-lE", "|".join(SECRETS), *_all_commits(git_remote)], cwd=git_remote, capture_output=True
    )
    assert everything.stdout == b""
    api = client(team, monkeypatch)
    experiment = api.get_experiment_by_name("detection").experiment_id
    runs = api.search_runs([experiment])
    assert not [secret for secret in SECRETS if secret in str([run.to_dictionary() for run in runs])]
    s3 = boto3.client("s3", endpoint_url=team.s3.url, **_keys())
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="team"):
        for item in page["Contents"]:
            content = s3.get_object(Bucket="team", Key=item["Key"])["Body"].read()
            assert not [secret for secret in SECRETS if secret.encode() in content], item["Key"]


def _all_commits(repository: Path) -> list[str]:
    listed = subprocess.run(["git", "rev-list", "--all"], cwd=repository, capture_output=True, text=True)
    return listed.stdout.split()


def _keys() -> dict[str, str]:
    return {
        "aws_access_key_id": S3_KEYS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": S3_KEYS["AWS_SECRET_ACCESS_KEY"],
        "region_name": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
    }
