"""Soak test: eight experiments at once on a store that does not exist yet, six queued and two `--temp`.

    python -m tests.soak.races              # three rounds
    python -m tests.soak.races --rounds 1

All differ: there must be eight runs, FINISHED and complete, one per experiment name. Then the same
experiment is queued twice under two names: one trains, the other waits and takes its outputs from the run-
cache, and both names share one run. The last line is `ok` or the list of problems.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.soak.clones import Clone, wait

STEPS = 5
TEMP = ("exp", "run", "--temp")
LR = "presets.small.optimizer.lr"  # the preset wins over the recipe


def queue(clone: Clone, names: dict[str, float]) -> None:
    """Queue experiments under their names and learning rates."""
    for name, lr in names.items():
        dvc(clone, "exp", "run", "--queue", "-n", name, "-S", f"{LR}={lr}", "evaluate")


def work(clone: Clone, seconds: float) -> None:
    """Start two workers and wait until the queue is empty."""
    dvc(clone, "queue", "start", "-j", "2")
    wait(lambda: not unfinished(clone), seconds, 3)


def dvc(clone: Clone, *words: str) -> str:
    """Run dvc; repeat the command while another process holds DVC's lock, for which DVC waits only 3 s."""
    for _ in range(20):
        try:
            return clone.run("dvc", *words)
        except RuntimeError as error:
            if "Unable to acquire lock" not in str(error):
                raise
            print(f"dvc {' '.join(words[:3])}: DVC's lock is taken; repeating", flush=True)
            time.sleep(3)
    raise RuntimeError("DVC's lock was never released")


def unfinished(clone: Clone) -> list[str]:
    """Queued and running tasks."""
    lines = dvc(clone, "queue", "status").splitlines()
    return [line for line in lines if "Queued" in line or "Running" in line]


def check_runs(clone: Clone, names: set[str]) -> list[str]:
    """Problems with the runs of experiments that all differ."""
    runs, problems = clone.runs(), []
    found = sorted(run.data.tags.get("dvc.exp_name", "?") for run in runs)
    if found != sorted(names):
        problems.append(f"runs of {found}")
    for run in runs:
        name = run.data.tags.get("dvc.exp_name", "?")
        if run.info.status != "FINISHED":
            problems.append(f"{name} is {run.info.status}")
        steps = [point[0] for point in clone.curves(run.info.run_id).get("loss", [])]
        if steps != list(range(1, STEPS + 1)):
            problems.append(f"{name} has the steps {steps}")
        if "test/AP" not in run.data.metrics:
            problems.append(f"{name} has no scores")
        recorded = experiment_row(clone, name)
        if recorded != run.info.run_id:
            problems.append(f"the experiment {name} records the run {recorded}, but it is {run.info.run_id}")
    return problems


def experiment_row(clone: Clone, name: str) -> str | None:
    """Run id that an experiment's commit records."""
    refs = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    for ref in refs:
        if ref.endswith(f"/{name}"):
            text = clone.run("git", "show", f"{ref}:reports/evaluation/run.json")
            return text.split('"')[3] if text.count('"') == 4 else None
    return None


def run_round(start: Clone, folder: Path) -> list[str]:
    """Run one race in a fresh copy; return its problems."""
    clone = start.copy_to(folder)
    began = time.monotonic()
    rates = {f"queued-{i}": 1e-4 * (i + 1) for i in range(6)}
    queue(clone, rates)
    with ThreadPoolExecutor(2) as pool:
        temps = [
            pool.submit(dvc, clone, *TEMP, "-n", f"temp-{i}", "-S", f"{LR}={1e-5 * (i + 1)}", "evaluate")
            for i in range(2)
        ]
        work(clone, 900)
    problems = [f"a --temp run failed: {error}" for error in (one.exception() for one in temps) if error]
    problems += check_runs(clone, {*rates, "temp-0", "temp-1"})
    print(f"8 at once: {time.monotonic() - began:.0f} s, {len(clone.runs())} runs", flush=True)

    began, before = time.monotonic(), {run.info.run_id for run in clone.runs()}
    queue(clone, {"same-1": 0.005, "same-2": 0.005})
    work(clone, 600)
    new = [run for run in clone.runs() if run.info.run_id not in before]
    names = sorted(",".join(run.data.tags.get("dvc.exp_names", "?") for run in new).split(","))
    if len(new) != 1 or names != ["same-1", "same-2"] or new[0].info.status != "FINISHED":
        problems.append(f"the same twice: {len(new)} runs of {names}")
    else:
        recorded = {experiment_row(clone, name) for name in names}
        if recorded != {new[0].info.run_id}:
            problems.append(f"the same twice: the experiments name {recorded}")
        if len(clone.curves(new[0].info.run_id)["loss"]) != STEPS:
            problems.append("the same twice: duplicate steps")
    print(f"the same twice: {time.monotonic() - began:.0f} s, {len(new)} run, names {names}", flush=True)
    clone.run("dvc", "queue", "stop")
    for worker in clone.workers():
        worker.terminate()
    if not wait(lambda: not [*clone.processes(), *clone.workers()], 60):
        problems.append(f"processes left: {[one.cmdline() for one in clone.processes()]}")
    return problems


def main() -> None:
    """Run the rounds; exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep all files there")
    options = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory(prefix="races-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        start = Clone.create(folder / "start", epochs=1, num_images=4 * STEPS)
        start.run("dvc", "repro", "pretrain")
        start.commit("prepared")
        for number in range(1, options.rounds + 1):
            found = run_round(start, folder / f"round-{number}")
            print(f"round {number}: {found or 'ok'}", flush=True)
            problems += found
    print(problems or "ok: 8 runs per round, all FINISHED and complete, none lost, none duplicated")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
