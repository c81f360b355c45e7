"""What tracking costs: steps of 50 ms with it off, into a local store, and over HTTP; and a million points.

    python -m benchmarks.tracking                     # about 8 minutes
    python -m benchmarks.tracking --only points       # a million, beside a bare loop of log_batch
    python -m benchmarks.tracking --only dying        # the server is dead for four rounds at a time

The three sides take turns within one process. Every step is the same work, on all threads, and logs six
values as the loop does: read every 20 steps, and handed to the row together once a round, in its middle, so
that sending falls among the steps; a training does it every 30 s, when it saves. The server is
a real one and shares the cores with the steps. The last lines are medians of the ratios within each round
of some seconds, as the host's speed changes over minutes: by the wall, and of the CPU time of this process
and its server.
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
from detection.training.history import History, now_ms
from tests.soak.servers import Server

NAMES = ("loss", "rpn_class", "rpn_box", "roi_class", "roi_box")
READ = 20
LIFE = 4  # rounds for which the server stays dead
STEP_S = 0.050


def calibrated() -> Callable[[], None]:
    """Work that takes about 50 ms on the threads there are."""
    matrix = torch.randn(512, 512)

    def times(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(matrix, matrix)
        return time.perf_counter() - started

    times(50)
    count = max(1, round(STEP_S / min(times(50) / 50 for _ in range(9))))
    return lambda: [torch.mm(matrix, matrix) for _ in range(count)] and None


def open_live(uri: str, reports: Path) -> MlflowRun:
    """New run in a store, filled from `reports`."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    store = connect()
    run_id = store.client.create_run(store.experiment).info.run_id
    opened = (store.client, run_id)
    return MlflowRun(lambda: opened, opened, reports)


def drive(history: History, run: Run, step: Callable[[], None], first: int, count: int) -> float:
    """Seconds of a round of so many steps that log as the loop does."""
    started, rows = time.perf_counter(), []
    for number in range(first, first + count):
        step()
        columns = {"step": number, "epoch": number / 100, "time": now_ms(), "lr": 0.1}
        rows.append(columns | dict.fromkeys(NAMES, 1 / number))
        if number % READ == 0:
            history.add_losses(rows)
            rows = []
        if number == first + count // 2:
            run.update(number // READ * READ)
    return time.perf_counter() - started


def cost(server: Server, folder: Path, rounds: int, steps: int) -> None:
    """Print the ratios of the three sides."""
    step = calibrated()
    rows: dict[str, Run] = {
        "off": NoRun(),
        "local": open_live(f"sqlite:///{folder}/local.db", folder / "local"),
        "http": open_live(server.uri, folder / "http"),
    }
    histories = {name: History(folder / name / "train") for name in rows}
    walls: dict[str, list[float]] = {name: [] for name in rows}
    works: dict[str, list[float]] = {name: [] for name in rows}
    served = psutil.Process(server.pid)
    for number in range(rounds):
        order = list(rows)[number % 3 :] + list(rows)[: number % 3]
        for name in order:
            before = cpu(served)
            walls[name].append(drive(histories[name], rows[name], step, 1 + number * steps, steps) / steps)
            works[name].append((cpu(served) - before) / steps)
    for row in rows.values():
        row.close("FINISHED")
    for name in rows:
        print(
            f"{name:6} {1000 * statistics.median(walls[name]):7.2f} ms a step by the wall, "
            f"{1000 * statistics.median(works[name]):7.2f} ms of CPU"
        )
    for kind, sides in (("wall", walls), ("CPU", works)):
        for name in ("local", "http"):
            print(f"ratio by {kind}, {name:5} {spread(sides[name], sides['off'])}")


def spread(side: list[float], off: list[float]) -> str:
    """Median and quartiles of the ratios of rounds."""
    low, middle, high = statistics.quantiles((a / b for a, b in zip(side, off, strict=True)), n=4)
    return f"{middle:.4f} (half of the rounds: {low:.4f} to {high:.4f})"


def dying(server: Server, folder: Path, rounds: int, steps: int) -> None:
    """Print what a dead server costs, that comes back after every fourth round; nothing may be lost."""
    step = calibrated()
    live = open_live(server.uri, folder / "dying")
    rows: dict[str, Run] = {"off": NoRun(), "dying": live}
    histories = {name: History(folder / name / "train") for name in rows}
    walls: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds):
        if number % LIFE == 0:
            server.kill()
        for name in list(rows)[:: 1 - 2 * (number % 2)]:
            walls[name].append(drive(histories[name], rows[name], step, 1 + number * steps, steps) / steps)
        if number % LIFE == LIFE - 1 or number == rounds - 1:
            server.start()
    live.update(rounds * steps)
    live.close("FINISHED")
    there = connect().client.get_metric_history(live.id, "loss")
    assert sorted(one.step for one in there) == list(range(1, rounds * steps + 1)), "not all have arrived"
    for name, times in walls.items():
        print(f"{name:6} {1000 * statistics.median(times):7.2f} ms a step by the wall")
    print(f"{-(-rounds // LIFE)} deaths, {len(there)} of {rounds * steps} steps in the row")
    print(f"ratio by wall, dying {spread(walls['dying'], walls['off'])}")


def cpu(served: psutil.Process) -> float:
    """CPU seconds of this process and of the server with its workers."""
    family = [psutil.Process(), served, *served.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def million(uri: str, folder: Path, points: int) -> tuple[float, float]:
    """Seconds for points through a row, and by a bare loop of `log_batch`, into the same store."""
    each = len(NAMES) + 1
    history = History(folder / "train")
    for step in range(1, points // each + 1):
        columns = {"step": step, "epoch": 0, "time": 1_700_000_000_000 + step, "lr": 0.1}
        history.losses.rows.append(columns | dict.fromkeys(NAMES, 1 / step))
    history = History(folder / "train", history.state())
    live = open_live(uri, folder)
    started = time.perf_counter()
    live.update(points // each)
    live.close("FINISHED")
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
    last = store.client.get_run(live.id).data.metrics
    assert last["loss"] == 1 / (points // each), "not all have arrived"
    return ours, bare


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100, help="of a round")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--only", choices=("cost", "dying", "points"), help="one of the three")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tracking-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        os.environ["DVC_ROOT"] = scratch
        for part in (cost, dying):
            if options.only in (None, part.__name__):
                server = Server(folder / part.__name__ / "server").start()
                try:
                    part(server, folder / part.__name__, options.rounds, options.steps)
                finally:
                    server.kill()
        if options.only in (None, "points"):
            ours, bare = million(f"sqlite:///{folder}/million.db", folder / "million", options.points)
            print(
                f"{options.points} points: {ours:.0f} s, bare log_batch {bare:.0f} s, ratio {ours / bare:.2f}"
            )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
