"""Overhead of tracking: steps of 50 ms without it, with a local store, and over HTTP; and a million points.

    python -m benchmarks.tracking                     # about 8 minutes
    python -m benchmarks.tracking --only points       # a million, against a bare loop of log_batch
    python -m benchmarks.tracking --only dead_server  # the server is dead for four rounds at a time

The three sides alternate within one process. Every step does the same work on all threads and logs six values
as the training loop does: read every 20 steps, and passed to the run once per round, in its middle, so that
the upload overlaps with steps; a training does so every 30 s, when it saves. The server is a real one and
shares the cores with the steps. The last lines are medians of the ratios within each round of a few seconds,
as the host's speed changes over minutes: wall time, and CPU time of this process and its server.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from detection.tracking.run import MlflowRun, NoRun, Run
from detection.tracking.store import connect
from detection.tracking.uploader import METRICS_PER_CALL, log_points
from detection.training.common.history import History, now_ms
from tests.soak.servers import Server

NAMES = ("loss", "rpn_class", "rpn_box", "roi_class", "roi_box")
STEPS_PER_READ = 20
DEAD_ROUNDS = 4
STEP_S = 0.050


def make_step() -> Callable[[], None]:
    """Return work that takes about 50 ms on all threads."""
    matrix = torch.randn(512, 512)

    def seconds(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(matrix, matrix)
        return time.perf_counter() - started

    seconds(50)
    count = max(1, round(STEP_S / min(seconds(50) / 50 for _ in range(9))))

    def step() -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)

    return step


def open_run(uri: str, reports: Path) -> MlflowRun:
    """Create an MLflow run that uploads the curves under `reports`."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    store = connect()
    run_id = store.client.create_run(store.experiment).info.run_id
    opened = (store.client, run_id)
    return MlflowRun(lambda: opened, opened, reports)


def run_round(history: History, run: Run, step: Callable[[], None], first: int, count: int) -> float:
    """Run a round of steps that log as the training loop does; return its seconds."""
    started, rows = time.perf_counter(), []
    for number in range(first, first + count):
        step()
        columns = {"step": number, "epoch": number / 100, "time": now_ms(), "lr": 0.1}
        rows.append(columns | dict.fromkeys(NAMES, 1 / number))
        if number % STEPS_PER_READ == 0:
            history.add_losses(rows)
            rows = []
        if number == first + count // 2:
            run.update(number // STEPS_PER_READ * STEPS_PER_READ)
    return time.perf_counter() - started


def cost(server: Server, folder: Path, rounds: int, steps: int) -> None:
    """Print the overhead of both stores relative to no tracking."""
    step = make_step()
    runs: dict[str, Run] = {
        "off": NoRun(),
        "local": open_run(f"sqlite:///{folder}/local.db", folder / "local"),
        "http": open_run(server.uri, folder / "http"),
    }
    histories = {name: History(folder / name / "train") for name in runs}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    process = psutil.Process(server.pid)
    for number in range(rounds):
        order = list(runs)[number % 3 :] + list(runs)[: number % 3]
        for name in order:
            before = cpu(process)
            walls[name].append(run_round(histories[name], runs[name], step, 1 + number * steps, steps) / steps)
            cpus[name].append((cpu(process) - before) / steps)
    for run in runs.values():
        run.close("FINISHED")
    for name in runs:
        print(
            f"{name:6} {1000 * statistics.median(walls[name]):7.2f} ms wall per step, "
            f"{1000 * statistics.median(cpus[name]):7.2f} ms CPU"
        )
    for clock, sides in (("wall", walls), ("CPU", cpus)):
        for name in ("local", "http"):
            print(f"ratio of {clock} time, {name:5} {spread(sides[name], sides['off'])}")


def spread(side: list[float], off: list[float]) -> str:
    """Median and quartiles of the ratios per round."""
    low, middle, high = statistics.quantiles((a / b for a, b in zip(side, off, strict=True)), n=4)
    return f"{middle:.4f} (quartiles {low:.4f} to {high:.4f})"


def dead_server(server: Server, folder: Path, rounds: int, steps: int) -> None:
    """Print the overhead of a dead server that restarts after every fourth round; no point may be lost."""
    step = make_step()
    run = open_run(server.uri, folder / "dead_server")
    runs: dict[str, Run] = {"off": NoRun(), "dead_server": run}
    histories = {name: History(folder / name / "train") for name in runs}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        if number % DEAD_ROUNDS == 0:
            server.kill()
        for name in list(runs)[:: 1 - 2 * (number % 2)]:
            walls[name].append(run_round(histories[name], runs[name], step, 1 + number * steps, steps) / steps)
        if number % DEAD_ROUNDS == DEAD_ROUNDS - 1 or number == rounds - 1:
            server.start()
    run.update(rounds * steps)
    run.close("FINISHED")
    stored = connect().client.get_metric_history(run.id, "loss")
    assert sorted(one.step for one in stored) == list(range(1, rounds * steps + 1)), "points are missing"
    for name, times in walls.items():
        print(f"{name:6} {1000 * statistics.median(times):7.2f} ms wall per step")
    print(f"{-(-rounds // DEAD_ROUNDS)} deaths, {len(stored)} of {rounds * steps} steps in the run")
    print(f"ratio of wall time, dead server {spread(walls['dead_server'], walls['off'])}")


def cpu(process: psutil.Process) -> float:
    """CPU seconds of this process and of the server with its workers."""
    family = [psutil.Process(), process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def million(uri: str, folder: Path, points: int) -> tuple[float, float]:
    """Seconds to log points through a run, and with a bare loop of `log_batch`, to the same store."""
    each = len(NAMES) + 1
    history = History(folder / "train")
    for step in range(1, points // each + 1):
        columns = {"step": step, "epoch": 0, "time": 1_700_000_000_000 + step, "lr": 0.1}
        history.losses.rows.append(columns | dict.fromkeys(NAMES, 1 / step))
    history = History(folder / "train", history.state())
    run = open_run(uri, folder)
    started = time.perf_counter()
    run.update(points // each)
    run.close("FINISHED")
    ours = time.perf_counter() - started

    store = connect()
    run_id = store.client.create_run(store.experiment).info.run_id
    started, batch = time.perf_counter(), []
    for step in range(1, points // each + 1):
        batch += [(name, 1 / step, 1_700_000_000_000 + step, step) for name in ("lr", *NAMES)]
        if len(batch) >= METRICS_PER_CALL - each:
            log_points(store.client, run_id, batch)
            batch = []
    if batch:
        log_points(store.client, run_id, batch)
    bare = time.perf_counter() - started
    last = store.client.get_run(run.id).data.metrics
    assert last["loss"] == 1 / (points // each), "points are missing"
    return ours, bare


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100, help="steps per round")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("cost", "dead_server", "points"), help="run only this part")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tracking-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        os.environ["DVC_ROOT"] = scratch
        for part in (cost, dead_server):
            if options.only in (None, part.__name__):
                server = Server(folder / part.__name__ / "server").start()
                try:
                    part(server, folder / part.__name__, options.rounds, options.steps)
                finally:
                    server.kill()
        if options.only in (None, "points"):
            ours, bare = million(f"sqlite:///{folder}/million.db", folder / "million", options.points)
            print(f"{options.points} points: {ours:.0f} s, bare log_batch {bare:.0f} s, ratio {ours / bare:.2f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
