"""Soak test: a training whose MLflow server is killed repeatedly, or is down at the start, middle or end.

    python -m tests.soak.server                       # killed five times, then the three cases
    python -m tests.soak.server --deaths 2 --epochs 20

The reference is the same training with a server that stays up. Each run must equal it point by point in
step and value, and its own CSV in time. A run recreated on an empty server from DVC's outputs alone must
equal the lost run, times included. The last line is `ok` or the list of problems.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.soak.clones import Clone, wait
from tests.soak.servers import Process, Server

OUTPUTS = (
    "models/detector.pt",
    *(f"reports/train/{name}" for name in ("losses.csv", "metrics.csv", "environment.json", "recipe.json")),
    "reports/evaluation/tables/mlflow_metrics.json",
)
Curves = dict[str, list[tuple[int, int, float]]]


class Case:
    """One training in a copy of the prepared clone, over a server of its own or a given one.

    Args:
        start: Prepared clone.
        folder: Folder for the copy.
        name: Name of the case, and of its MLflow experiment on a given server.
        server: A server that runs already.
        environment: Credentials for it.
    """

    def __init__(
        self, start: Clone, folder: Path, name: str, server: Process | None = None, environment: Mapping[str, str] = {}
    ) -> None:
        self.name, self.clone = name, start.copy_to(folder / name)
        self.server = server or Server(folder / f"{name}-server")
        self.uri = self.server.uri if isinstance(self.server, Server) else self.server.url
        self.experiment = name if server else "detection"
        self._environment = dict(environment) | {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_EXPERIMENT_NAME": self.experiment,
        }
        self.problems: list[str] = []

    def train(self, meanwhile: Callable[["Case"], None] = lambda case: None) -> float:
        """Run the pipeline beside a thread; return the duration of the training steps in seconds."""
        beside = threading.Thread(target=meanwhile, args=(self,))
        beside.start()
        output = self.clone.run("dvc", "repro", **self._environment)
        beside.join()
        Path(f"{self.clone.folder}.log").write_text(output)
        metrics = json.loads((self.clone.folder / "reports/train/metrics.json").read_text())
        return float(metrics["seconds"])

    def sync(self) -> None:
        """Run `detection sync`, as a user does once the server is back."""
        print(f"  {self.name}: {self.clone.run('detection', 'sync', **self._environment)}", end="")

    def run_id(self) -> str:
        """Id of the only run; records a problem if there are others or it is not FINISHED."""
        from detection.tracking.store import import_mlflow

        client = import_mlflow().MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self.experiment)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        if [run.info.status for run in runs] != ["FINISHED"]:
            self.problems.append(f"{self.name}: runs {[run.info.status for run in runs]}")
        if not runs or "test/AP" not in runs[0].data.metrics:
            self.problems.append(f"{self.name}: no scores")
        files = {one.path for one in client.list_artifacts(runs[0].info.run_id)} if runs else set()
        if missing := {"train", "evaluation", "plots", "samples", "params.yaml"} - files:
            self.problems.append(f"{self.name}: the run lacks the artifacts {sorted(missing)}")
        return str(runs[0].info.run_id) if runs else ""

    def curves(self) -> Curves:
        """All points that the training logged."""
        return self.clone.curves(self.run_id(), self.uri)

    def compare(self, reference: Curves) -> None:
        """Record differences from the reference run and from the training's own CSV."""
        mine = self.curves()
        for name in mine.keys() | reference.keys():
            ours, theirs = ([(step, value) for step, _, value in one.get(name, [])] for one in (mine, reference))
            if ours != theirs:
                self.problems.append(f"{self.name}: {name} has {len(ours)} points, reference {len(theirs)}")
        times = {int(run["step"]): int(run["time"]) for run in self.clone.losses()}
        if [(step, time_ms) for step, time_ms, _ in mine["loss"]] != sorted(times.items()):
            self.problems.append(f"{self.name}: times in the run and in the CSV differ")
        print(f"  {self.name}: {sum(map(len, mine.values()))} points in {len(mine)} curves: "
              f"{self.problems or 'equal to the reference'}", flush=True)  # fmt: skip


def deaths(count: int, steps: int) -> Callable[[Case], None]:
    """Kill and restart the server `count` times, spread over the training."""

    def meanwhile(case: Case) -> None:
        def reached(step: int) -> bool:
            return case.clone.step() >= step

        for number in range(1, count + 1):
            wait(partial(reached, number * steps // (count + 1)), 900, 0.1)
            case.server.kill()
            print(f"  server killed at step {case.clone.step()}", flush=True)
            time.sleep(3)
            case.server.start()
            print(f"  server back at step {case.clone.step()}", flush=True)

    return meanwhile


def comes_late(case: Case) -> None:
    """The server is down when the training starts and comes up in its middle."""
    wait(lambda: case.clone.step() >= 20, 600, 0.1)
    case.server.start()


def goes_early(case: Case) -> None:
    """The server goes down in the middle of the training and is back only for `detection sync`."""
    wait(lambda: case.clone.step() >= 20, 600, 0.1)
    case.server.kill()


def main() -> None:
    """Run all cases; exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--only-deaths", action="store_true", help="skip the other cases")
    parser.add_argument("--folder", type=Path, help="keep all files there")
    options = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        start = Clone.create(folder / "start", options.epochs, options.images)
        start.run("dvc", "repro", "pretrain")

        def case(name: str) -> Case:
            cases.append(Case(start, folder, name))
            return cases[-1]

        try:
            reference_case = case("uninterrupted")
            reference_case.server.start()
            uninterrupted = reference_case.train()
            reference = reference_case.curves()
            steps = len(reference["loss"])
            print(f"uninterrupted: {steps} steps in {uninterrupted:.1f} s", flush=True)
            reference_case.server.kill()

            dying = case("killed")
            dying.server.start()
            disturbed = dying.train(deaths(options.deaths, steps))
            print(f"killed {options.deaths} times: {disturbed:.1f} s, {disturbed / uninterrupted:.3f} of uninterrupted")
            dying.compare(reference)
            dying.server.kill()
            if not options.only_deaths:
                other_cases(case, reference)
        finally:
            for one in cases:
                one.server.kill()
        problems = [problem for one in cases for problem in one.problems]
    print(problems or "ok: every run equals the reference, point by point")
    sys.exit(bool(problems))


def other_cases(case: Callable[[str], Case], reference: Curves) -> None:
    """Server down at the start, from the middle on, all the time; and an empty server."""
    late = case("away-at-the-start")
    late.train(comes_late)
    late.compare(reference)

    gone = case("away-from-the-middle")
    gone.server.start()
    gone.train(goes_early)
    gone.server.start()
    gone.sync()
    gone.compare(reference)

    away = case("away-all-the-time")
    away.train()
    away.server.start()
    away.sync()
    away.compare(reference)

    before = away.curves()
    assert isinstance(away.server, Server)
    away.server.kill()
    shutil.rmtree(away.server.folder)
    shutil.rmtree(away.clone.folder / ".checkpoints")
    for name in OUTPUTS:
        (away.clone.folder / name).unlink()
    away.clone.run("dvc", "checkout")
    away.server.folder.mkdir()
    away.server.start()
    away.sync()
    same = away.curves() == before
    print(f"  empty server: {'the run equals the lost one, times included' if same else 'the run differs'}")
    if not same:
        away.problems.append("the run on the empty server differs")
    away.sync()
    away.server.kill()


if __name__ == "__main__":
    main()
