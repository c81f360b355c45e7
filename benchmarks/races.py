"""Eight experiments at once on a store that nobody has made yet: six queued with `-j 2`, two `--temp` runs.

    python -m benchmarks.races              # three rounds
    python -m benchmarks.races --rounds 1

All are different: there must be eight rows, FINISHED and complete, one for each experiment's name. Then the
same experiment is queued twice under two names: one trains, the other waits for it and takes what it made,
and both names share a row. The last line says ok, or what was wrong.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.clones import MODEL, Clone, wait

STEPS = 5
TEMP = ("exp", "run", "--temp")
LR = f"models.{MODEL}.optimizer.lr"


def queue(clone: Clone, names: dict[str, float]) -> None:
    """Queue experiments under their names and learning rates."""
    for name, lr in names.items():
        dvc(clone, "exp", "run", "--queue", "-n", name, "-S", f"{LR}={lr}", "evaluate")


def work(clone: Clone, seconds: float) -> None:
    """Start two workers and wait until they have done what is queued."""
    dvc(clone, "queue", "start", "-j", "2")
    wait(lambda: not unfinished(clone), seconds, 3)


def dvc(clone: Clone, *words: str) -> str:
    """Run dvc, as a person does: again where another one held its lock, which it waits for 3 s only."""
    for _ in range(20):
        try:
            return clone.run("dvc", *words)
        except RuntimeError as error:
            if "Unable to acquire lock" not in str(error):
                raise
            print(f"dvc {' '.join(words[:3])}: DVC's lock was taken; said again", flush=True)
            time.sleep(3)
    raise RuntimeError("DVC's lock is never free")


def unfinished(clone: Clone) -> list[str]:
    """The queue's tasks that wait or run."""
    lines = dvc(clone, "queue", "status").splitlines()
    return [line for line in lines if "Queued" in line or "Running" in line]


def look(clone: Clone, names: set[str]) -> list[str]:
    """What is wrong with the rows of experiments that are all different."""
    rows, faults = clone.rows(), []
    found = sorted(row.data.tags.get("dvc.exp_name", "?") for row in rows)
    if found != sorted(names):
        faults.append(f"rows of {found}")
    for row in rows:
        name = row.data.tags.get("dvc.exp_name", "?")
        if row.info.status != "FINISHED":
            faults.append(f"{name} is {row.info.status}")
        steps = [point[0] for point in clone.curves(row.info.run_id).get("loss", [])]
        if steps != list(range(1, STEPS + 1)):
            faults.append(f"{name} has the steps {steps}")
        if "test/AP" not in row.data.metrics:
            faults.append(f"{name} has no scores")
        told = experiment_row(clone, name)
        if told != row.info.run_id:
            faults.append(f"the experiment {name} names the row {told}, and it is {row.info.run_id}")
    return faults


def experiment_row(clone: Clone, name: str) -> str | None:
    """The row that an experiment's commit names."""
    refs = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    for ref in refs:
        if ref.endswith(f"/{name}"):
            text = clone.run("git", "show", f"{ref}:reports/evaluation/run.json")
            return text.split('"')[3] if text.count('"') == 4 else None
    return None


def a_round(start: Clone, folder: Path) -> list[str]:
    """The race in a fresh copy; returns what was wrong."""
    clone = start.copied(folder)
    began = time.monotonic()
    rates = {f"queued-{i}": 1e-4 * (i + 1) for i in range(6)}
    queue(clone, rates)
    with ThreadPoolExecutor(2) as pool:
        temps = [
            pool.submit(dvc, clone, *TEMP, "-n", f"temp-{i}", "-S", f"{LR}={1e-5 * (i + 1)}", "evaluate")
            for i in range(2)
        ]
        work(clone, 900)
    faults = [f"a --temp run failed: {error}" for error in (one.exception() for one in temps) if error]
    faults += look(clone, {*rates, "temp-0", "temp-1"})
    print(f"8 at once: {time.monotonic() - began:.0f} s, {len(clone.rows())} rows", flush=True)

    began, before = time.monotonic(), {row.info.run_id for row in clone.rows()}
    queue(clone, {"same-1": 0.005, "same-2": 0.005})
    work(clone, 600)
    new = [row for row in clone.rows() if row.info.run_id not in before]
    names = sorted(",".join(row.data.tags.get("dvc.exp_names", "?") for row in new).split(","))
    if len(new) != 1 or names != ["same-1", "same-2"] or new[0].info.status != "FINISHED":
        faults.append(f"the same twice: {len(new)} rows of {names}")
    else:
        told = {experiment_row(clone, name) for name in names}
        if told != {new[0].info.run_id}:
            faults.append(f"the same twice: the experiments name {told}")
        if len(clone.curves(new[0].info.run_id)["loss"]) != STEPS:
            faults.append("the same twice: steps are double")
    print(f"the same twice: {time.monotonic() - began:.0f} s, {len(new)} row, names {names}", flush=True)
    clone.run("dvc", "queue", "stop")
    for worker in clone.workers():
        worker.terminate()
    if not wait(lambda: not [*clone.processes(), *clone.workers()], 60):
        faults.append(f"left: {[one.cmdline() for one in clone.processes()]}")
    return faults


def main() -> None:
    """Run the rounds; exits with 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    options = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory(prefix="races-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        start = Clone.made(folder / "start", epochs=1, pictures=4 * STEPS)
        start.run("dvc", "repro", "pretrain")
        start.commit("prepared")
        for number in range(1, options.rounds + 1):
            found = a_round(start, folder / f"round-{number}")
            print(f"round {number}: {found or 'ok'}", flush=True)
            faults += found
    print(faults or "ok: 8 rows a round, all FINISHED and complete, none lost, none double")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
