"""Soak test of a team's server: MLflow with basic-auth on PostgreSQL, with its artifacts on S3 (moto).

    python -m tests.soak.team                       # all
    python -m tests.soak.team clients kills volume

`clients`: eight clones train at once on a fresh server: eight complete runs, none double. `kills`: the server is killed
with SIGKILL and restarted five times while a training runs: its run equals that of an undisturbed training point by
point, with its params, tags, dataset inputs, artifacts and model. `volume`: 100,000 points and a 500-MB file through
the uploader, beside a bare MLflow client, in turn. The last line is `ok` or the list of problems; the exit code is 0
or 1.
"""

import argparse
import csv
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.clones import Clone, same_weights
from tests.soak.run_content import RunContent
from tests.soak.server import Case, deaths
from tests.tracking.team.conftest import AUTH, AUTH_VARIABLES, PASSWORDS, Team, bucket, start_mlflow
from tests.tracking.team.servers import Postgres, start_s3

LR = "presets.small.optimizer.lr"
STEPS, METRICS = 10_000, 10
ARTIFACTS = {"train", "evaluation", "plots", "params.yaml"}
"""Files and folders of a complete run."""


def start_team(folder: Path) -> Team:
    """Fresh servers."""
    folder.mkdir(parents=True)
    postgres, s3 = Postgres(), start_s3(folder)
    bucket(s3, "team")
    backend = postgres.create("mlflow")
    (folder / "auth.ini").write_text(AUTH.format(database=backend, password=PASSWORDS["admin"]))
    more = AUTH_VARIABLES | {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}
    mlflow = start_mlflow(folder, backend, "s3://team/mlflow", s3, ["--app-name", "basic-auth"], more)
    return Team(folder, postgres, s3, mlflow, backend)


def stop(team: Team) -> None:
    """Stop the servers."""
    team.mlflow.kill()
    team.s3.kill()
    team.postgres.stop()


def clients(team: Team, start: Clone, folder: Path) -> list[str]:
    """Eight clones at once."""
    from detection.tracking.store import import_mlflow

    clones = [start.copy_to(folder / f"client-{i}") for i in range(8)]
    began = time.monotonic()
    words = ("dvc", "exp", "run", "--name")
    running = [
        one.start(*words, f"client-{i}", "-S", f"{LR}={1e-5 * (i + 1)}", **team.environment("admin"))
        for i, one in enumerate(clones)
    ]
    codes = [one.wait(3000) for one in running]
    client = import_mlflow().MlflowClient(tracking_uri=team.uri)
    experiment = client.get_experiment_by_name("detection").experiment_id
    runs, models = client.search_runs([experiment]), client.search_logged_models([experiment])
    evaluated = [run for run in runs if run.info.status == "FINISHED" and "test/AP" in run.data.metrics]
    complete = [run for run in evaluated if {f.path for f in client.list_artifacts(run.info.run_id)} >= ARTIFACTS]
    names = sorted(run.data.tags["dvc.exp_name"] for run in runs)
    ready = [str(model.status.value) for model in models]
    print(
        f"8 clients at once: {time.monotonic() - began:.0f} s, exit codes {codes}, {len(runs)} runs of which "
        f"{len(complete)} complete, names {names}, models {ready}", flush=True,
    )  # fmt: skip
    good = len(runs) == len(complete) == 8 and names == [f"client-{i}" for i in range(8)] and ready == ["READY"] * 8
    return [] if good and not any(codes) else ["eight clients"]


def kills(team: Team, start: Clone, folder: Path) -> list[str]:
    """The server is killed five times."""
    from detection.tracking.store import import_mlflow

    cases = [Case(start, folder, name, team.mlflow, team.environment("admin")) for name in ("uninterrupted", "killed")]
    undisturbed, killed = cases
    seconds = undisturbed.train()
    steps = len(undisturbed.clone.losses())
    print(f"  uninterrupted: {steps} steps in {seconds:.0f} s", flush=True)
    seconds = killed.train(deaths(5, steps))
    print(f"  killed: {seconds:.0f} s", flush=True)
    killed.compare(undisturbed.curves())
    client = import_mlflow().MlflowClient(tracking_uri=team.uri)
    reference, content = (RunContent.read(client, one.run_id()) for one in cases)
    problems = [problem for case in cases for problem in case.problems]
    problems += [f"killed: {one}" for one in content.differences(reference)]
    problems += [f"killed: artifact {name} is not the file of the workspace" for name in foreign(content, killed.clone)]
    detectors = [case.clone.folder / "models/detector.pt" for case in cases]
    problems += ["killed: the weights differ"] * (not same_weights(*detectors))
    print(
        f"server killed 5 times: {'differs' if problems else 'equal'} ({content.summary()}), "
        f"largest difference {content.largest_difference(reference):g}", flush=True,
    )  # fmt: skip
    return problems


def foreign(content: RunContent, clone: Clone) -> list[str]:
    """Artifacts of a run that differ from the files of its clone; `dvc.lock` gets its last stage after its upload."""
    paths = [clone.folder / "params.yaml", clone.folder / "models/detector.pt", *(clone.folder / "reports").rglob("*")]
    known = {hashlib.md5(path.read_bytes()).hexdigest() for path in paths if path.is_file()}
    names = [name for name in content.artifacts if not name.startswith("model/") or name.endswith("detector.pt")]
    return [name for name in names if name != "dvc.lock" and content.artifacts[name] not in known]


def volume(team: Team, folder: Path) -> list[str]:
    """Many points and a large file, by the uploader and by a bare client in turn, three times."""
    from mlflow.entities import Metric

    from detection.tracking.artifacts import Artifacts
    from detection.tracking.store import import_mlflow
    from detection.tracking.uploader import Uploader

    client = import_mlflow().MlflowClient(tracking_uri=team.uri)
    experiment = client.create_experiment("volume")
    reports, names = folder / "reports", [f"term_{i}" for i in range(METRICS)]
    (reports / "train").mkdir(parents=True)
    with (reports / "train/losses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "time", *names])
        writer.writerows([step, step, *(step + i / 10 for i in range(METRICS))] for step in range(1, STEPS + 1))
    large = folder / "detector.pt"
    large.write_bytes(os.urandom(1 << 20) * 500)

    def ours(run: Any) -> int:
        return sum(Uploader(client, run.info.run_id, reports).send())

    def bare(run: Any) -> int:
        points = [
            Metric(name, step + i / 10, step, step) for step in range(1, STEPS + 1) for i, name in enumerate(names)
        ]
        for first in range(0, len(points), 1000):
            client.log_batch(run.info.run_id, metrics=points[first : first + 1000])
        return len(points)

    def our_file(run: Any) -> int:
        Artifacts(client, run.info.artifact_uri).send(large)
        return int(client.list_artifacts(run.info.run_id)[0].file_size) >> 20

    def bare_file(run: Any) -> int:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "3600"  # of MLflow; this project's 10 s are too short for it
        client.log_artifact(run.info.run_id, str(large))
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"
        return int(client.list_artifacts(run.info.run_id)[0].file_size) >> 20

    problems = []
    for what, expected, pair in (
        ("100,000 points", STEPS * METRICS, {"uploader": ours, "bare client": bare}),
        ("500 MiB", 500, {"uploader": our_file, "bare client": bare_file}),
    ):
        seconds: dict[str, list[float]] = {name: [] for name in pair}
        for _ in range(3):
            for name, send in pair.items():
                run = client.create_run(experiment)
                began = time.monotonic()
                sent = send(run)
                seconds[name].append(time.monotonic() - began)
                if sent != expected:
                    problems.append(f"{what}: {name} sent {sent}")
        medians = {name: f"{statistics.median(times):.1f} s" for name, times in seconds.items()}
        print(f"{what}: {medians}, all {[[round(t, 1) for t in times] for times in seconds.values()]}", flush=True)
    return problems


def main() -> None:
    """Run the parts; exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["volume", "clients", "kills"])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep all files there")
    options = parser.parse_args()
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="team-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        parts: dict[str, Callable[[Team], list[str]]] = {
            "volume": lambda team: volume(team, folder / "volume"),
            "clients": lambda team: clients(team, prepared(folder / "short", 1, 16), folder),
            "kills": lambda team: kills(team, prepared(folder / "long", options.epochs, options.images), folder),
        }
        for part in options.parts:
            team = start_team(folder / f"{part}-server")
            try:
                os.environ.update(team.environment("admin"))
                problems += parts[part](team)
            finally:
                stop(team)
    print(problems or "ok: nothing lost, nothing double, equal point by point")
    sys.exit(bool(problems))


def prepared(folder: Path, epochs: int, images: int) -> Clone:
    """Clone with a prepared dataset and backbone."""
    clone = Clone.create(folder, epochs, images)
    clone.run("dvc", "repro", "pretrain")
    clone.commit("prepared")
    return clone


if __name__ == "__main__":
    main()
