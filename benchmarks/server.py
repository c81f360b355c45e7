"""A training whose MLflow server dies: again and again, or is away at the start, in the middle or at the end.

    python -m benchmarks.server                       # killed five times, then the three cases
    python -m benchmarks.server --deaths 2 --epochs 20

First the same training runs with a server that nobody kills. Afterwards each row must equal it point by
point in step and value, and its own CSV in time; a row on an emptied server, from DVC's outputs alone,
must equal the row that was lost in times as well. The last line says ok, or what was wrong.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.clones import Clone, wait
from benchmarks.servers import Server

OUTPUTS = ("models/detector.pt", "reports/train/losses.csv", "reports/train/metrics.csv")
OUTPUTS += ("reports/train/environment.json", "reports/train/recipe.json", "reports/evaluation/row.json")
Curves = dict[str, list[tuple[int, int, float]]]


class Case:
    """One training in a copy of the prepared clone, over a server of its own."""

    def __init__(self, start: Clone, folder: Path, name: str) -> None:
        self.name, self.clone = name, start.copied(folder / name)
        self.server = Server(folder / f"{name}-server")
        self.faults: list[str] = []

    def train(self, meanwhile: Callable[["Case"], None] = lambda case: None) -> float:
        """Run the pipeline and something beside it; returns the seconds that the training's steps took."""
        beside = threading.Thread(target=meanwhile, args=(self,))
        beside.start()
        said = self.clone.run("dvc", "repro", MLFLOW_TRACKING_URI=self.server.uri)
        beside.join()
        Path(f"{self.clone.folder}.log").write_text(said)
        metrics = json.loads((self.clone.folder / "reports/train/metrics.json").read_text())
        return float(metrics["seconds"])

    def sync(self) -> None:
        """What a person says once the server is back."""
        print(
            f"  {self.name}: {self.clone.run('detection', 'sync', MLFLOW_TRACKING_URI=self.server.uri)}",
            end="",
        )

    def row(self) -> str:
        """The only row; notes a fault where there are others, or it is not finished."""
        from detection.tracking.store import import_mlflow

        client = import_mlflow().MlflowClient(tracking_uri=self.server.uri)
        experiment = client.get_experiment_by_name("detection")
        rows = client.search_runs([experiment.experiment_id]) if experiment else []
        if [row.info.status for row in rows] != ["FINISHED"]:
            self.faults.append(f"{self.name}: rows {[row.info.status for row in rows]}")
        if not rows or "test/AP" not in rows[0].data.metrics:
            self.faults.append(f"{self.name}: no scores")
        files = {one.path for one in client.list_artifacts(rows[0].info.run_id)} if rows else set()
        if missing := {"train", "evaluation", "plots", "models", "samples", "params.yaml"} - files:
            self.faults.append(f"{self.name}: the row has no {sorted(missing)}")
        return str(rows[0].info.run_id) if rows else ""

    def curves(self) -> Curves:
        """All points that the training logged."""
        return self.clone.curves(self.row(), self.server.uri)

    def compare(self, reference: Curves) -> None:
        """Note where the row is not as that of the undisturbed training, or not as the own CSV."""
        mine = self.curves()
        for name in mine.keys() | reference.keys():
            ours, theirs = (
                [(step, value) for step, _, value in one.get(name, [])] for one in (mine, reference)
            )
            if ours != theirs:
                self.faults.append(f"{self.name}: {name} has {len(ours)} points, undisturbed {len(theirs)}")
        times = {int(row["step"]): int(row["time"]) for row in self.clone.losses()}
        if [(step, time_ms) for step, time_ms, _ in mine["loss"]] != sorted(times.items()):
            self.faults.append(f"{self.name}: the row's times are not those of the CSV")
        print(f"  {self.name}: {sum(map(len, mine.values()))} points in {len(mine)} curves: "
              f"{self.faults or 'as undisturbed'}", flush=True)  # fmt: skip


def deaths(count: int, steps: int) -> Callable[[Case], None]:
    """Kill the server that often, spread over the training, and start it again each time."""

    def meanwhile(case: Case) -> None:
        for number in range(1, count + 1):
            wait(lambda at=number * steps // (count + 1): case.clone.step() >= at, 900, 0.1)
            case.server.kill()
            print(f"  server killed at step {case.clone.step()}", flush=True)
            time.sleep(3)
            case.server.start()
            print(f"  server back at step {case.clone.step()}", flush=True)

    return meanwhile


def comes_late(case: Case) -> None:
    """The server is away when the training starts, and comes in its middle."""
    wait(lambda: case.clone.step() >= 20, 600, 0.1)
    case.server.start()


def goes_early(case: Case) -> None:
    """The server goes in the middle of the training, and is back only for `detection sync`."""
    wait(lambda: case.clone.step() >= 20, 600, 0.1)
    case.server.kill()


def main() -> None:
    """Run all cases; exits with 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--only-deaths", action="store_true", help="leave the other cases out")
    parser.add_argument("--folder", type=Path, help="keep everything there")
    options = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        start = Clone.made(folder / "start", options.epochs, options.pictures)
        start.run("dvc", "repro", "pretrain")

        def case(name: str) -> Case:
            cases.append(Case(start, folder, name))
            return cases[-1]

        try:
            calm = case("undisturbed")
            calm.server.start()
            undisturbed = calm.train()
            reference = calm.curves()
            steps = len(reference["loss"])
            print(f"undisturbed: {steps} steps in {undisturbed:.1f} s", flush=True)
            calm.server.kill()

            dying = case("killed")
            dying.server.start()
            disturbed = dying.train(deaths(options.deaths, steps))
            print(
                f"killed {options.deaths} times: {disturbed:.1f} s, "
                f"{disturbed / undisturbed:.3f} of undisturbed"
            )
            dying.compare(reference)
            dying.server.kill()
            if not options.only_deaths:
                other_cases(case, reference)
        finally:
            for one in cases:
                one.server.kill()
        faults = [fault for one in cases for fault in one.faults]
    print(faults or "ok: every row equals the undisturbed one, point by point")
    sys.exit(bool(faults))


def other_cases(case: Callable[[str], Case], reference: Curves) -> None:
    """Away at the start, in the middle, at the end; and an emptied server."""
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
    print(f"  emptied server: {'the row is as before, times included' if same else 'the row differs'}")
    if not same:
        away.faults.append("the row on the emptied server differs")
    away.sync()
    away.server.kill()


if __name__ == "__main__":
    main()
