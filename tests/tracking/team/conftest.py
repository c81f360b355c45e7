"""A team's servers: PostgreSQL, S3, MLflow with a login; a member's environment; a repository with a git remote."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.soak.clones import Clone
from tests.soak.servers import Process, free_port
from tests.tracking.team.servers import Postgres, start_s3

ROOT = Path(__file__).resolve().parents[3]
PASSWORDS = {"admin": "correct-horse-7", "ann": "battery-staple-8", "ben": "tropical-otter-9"}
PASSWORDS |= {"carl": "marble-kettle-3", "dana": "quiet-lantern-4"}
S3_KEYS = {"AWS_ACCESS_KEY_ID": "team-key-id", "AWS_SECRET_ACCESS_KEY": "violet-bucket-secret"}
S3_KEYS |= {"AWS_DEFAULT_REGION": "us-east-1"}
TIMEOUT = ["timeout", "--kill-after=60", "1200"]
"""Prefix of a command whose processes end together after 20 minutes, on a busy machine several times what they take."""
AUTH_VARIABLES = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "flask-session-secret"}
AUTH = """[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = admin
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass
class Team:
    """Running servers and the git server's repository."""

    folder: Path
    postgres: Postgres
    s3: Process
    mlflow: Process
    backend: str
    """SQLAlchemy URI of MLflow's database."""

    @property
    def uri(self) -> str:
        """Tracking URI."""
        return self.mlflow.url

    def environment(self, user: str, password: str | None = None) -> dict[str, str]:
        """Environment variables of a member's shell."""
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password or PASSWORDS[user]}
        return S3_KEYS | login | {"MLFLOW_TRACKING_URI": self.uri}


@pytest.fixture(scope="package")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if Postgres.binary("initdb") is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = tmp_path_factory.mktemp("team")
    postgres = Postgres()
    s3 = start_s3(folder)
    bucket(s3, "team")
    backend = postgres.create("mlflow")
    (folder / "auth.ini").write_text(AUTH.format(database=backend, password=PASSWORDS["admin"]))
    more = AUTH_VARIABLES | {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
    mlflow = start_mlflow(folder, backend, "s3://team/mlflow", s3, ["--app-name", "basic-auth"], more)
    yield Team(folder, postgres, s3, mlflow, backend)
    for process in (mlflow, s3):
        process.kill()
    postgres.stop()


def start_mlflow(
    folder: Path, backend: str, artifacts: str, s3: Process, options: list[str], more: dict[str, str]
) -> Process:
    """MLflow server on a free port, with its artifacts on S3."""
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port), *options]
    words += [
        "--allowed-hosts",
        f"127.0.0.1:{port}",
        "--backend-store-uri",
        backend,
        "--artifacts-destination",
        artifacts,
    ]
    env = S3_KEYS | {"MLFLOW_S3_ENDPOINT_URL": s3.url} | more
    return Process(words, folder / "mlflow.log", f"http://127.0.0.1:{port}", env).start()


def bucket(s3: Process, name: str) -> None:
    """Create a bucket."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3.url,
        aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=name)


@pytest.fixture(scope="package")
def git_remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with a copy of this one, on a toy dataset of a few steps."""
    folder = tmp_path_factory.mktemp("git")
    clone = Clone.create(folder / "first", epochs=1, num_images=12)
    params = clone.folder / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("\n  method: crops\n", "\n  method: none\n", 1))
    assert params.read_text() != before
    clone.commit("without pretraining")
    subprocess.run(["git", "clone", "-q", "--bare", clone.folder, folder / "detectors.git"], check=True)
    return folder / "detectors.git"


def shell(script: str, folder: Path, user: str = "ann") -> str:
    """Run a bash script in a folder with a shell's usual environment; returns its stdout and stderr."""
    env = Clone(folder).environment(GIT_AUTHOR_NAME=user, GIT_AUTHOR_EMAIL=f"{user}@localhost")
    env |= {"PYTHONPATH": ".", "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    env = {key: value for key, value in env.items() if not key.startswith("AWS_")}
    words = [*TIMEOUT, "bash", "-e", "-c", script]
    done = subprocess.run(
        words, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-5000:]}"
    return done.stdout
