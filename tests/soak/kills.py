"""Soak test: kill one training repeatedly and check that nothing is lost.

    python -m tests.soak.kills                     # 40 under `dvc repro`: 20 SIGKILL, 10 SIGTERM, 10 SIGINT
    python -m tests.soak.kills --mode temp         # 5 under `dvc exp run --temp`
    python -m tests.soak.kills --mode queue        # 5 in DVC's queue, `dvc queue kill` among them
    python -m tests.soak.kills --mode pretrain     # 10 of the backbone's training
    python -m tests.soak.kills --started           # from a detector that is trained first (`start.from`)
    python -m tests.soak.kills --kills 4 --epochs 2

Each kill comes after at least one new step, at a random time or while a checkpoint is being written. The
final weights must equal those of an uninterrupted training to the last bit, in one MLflow run, with every
step exactly once in the run and in the CSV, and no process may survive a kill. The last line is `ok` or the
list of problems.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak.clones import Clone, same_weights, wait

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
ATTEMPT_TIMEOUT_S = 600.0


@dataclass
class Check:
    """A clone whose training is killed, and what was observed."""

    clone: Clone
    stage: str
    command: Callable[[int], subprocess.Popen[bytes]]
    random: random.Random
    queued: bool
    """True if DVC's queue runs the training."""
    torn: int = 0
    """Checkpoints whose writing was interrupted."""
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def attempt(self, number: int, how: str, while_saving: bool) -> bool:
        """Start the training, kill it and check the clone; False if the training ended first."""
        before, born = self.clone.saved_step(self.stage), time.time()
        process = self.command(number)
        reached, pause = (self._saving, 0.001) if while_saving else (self._stepped, 0.05)
        ready = wait(lambda: process.poll() is not None or reached(before, born), ATTEMPT_TIMEOUT_S, pause)
        if not while_saving:
            time.sleep(self.random.random() * 1.5)
        if not ready or process.poll() is not None:
            self.problems.append(f"attempt {number} ended on its own: {process.poll()}")
            return False
        at = self.clone.step()
        kill(self.clone, self.stage, process, how)
        if self.queued:
            process.terminate()  # a placeholder that only waits
        self.kills[how] += 1
        self._gone(process, number)
        half = list(self.clone.folder.glob(f".checkpoints/{self.stage}/*/*.writing"))
        self.torn += bool(half)
        after = self.clone.saved_step(self.stage)  # loading proves that the file is complete
        interrupted = ", checkpoint half written" if half else ""
        print(f"attempt {number:2}: from {before}, {how} at {at}{interrupted}; resumes at {after}", flush=True)
        return True

    def _stepped(self, before: int, born: float) -> bool:
        """Return True once this attempt has taken a new step."""
        if self.stage == "train":
            return self.clone.step() > before and self.clone.stage("train") is not None
        path = self.clone.checkpoint(self.stage)
        return path.exists() and path.stat().st_mtime > born

    def _saving(self, before: int, born: float) -> bool:
        """Return True while the checkpoint after a new step is being written."""
        files = self.clone.folder.glob(f".checkpoints/{self.stage}/*/state.pt.writing")
        return any(size(path) > 0 for path in files if newer(path, born))

    def _gone(self, process: subprocess.Popen[bytes], number: int) -> None:
        wait(lambda: process.poll() is not None, 90)
        if not wait(lambda: not self.clone.processes(), 90):
            left = [one.cmdline() for one in self.clone.processes()]
            self.problems.append(f"attempt {number}: processes survive: {left}")


def size(path: Path) -> int:
    """File size in bytes; 0 if the file is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def newer(path: Path, born: float) -> bool:
    """Return True if a file was written after a time."""
    try:
        return path.stat().st_mtime >= born
    except FileNotFoundError:
        return False


def kill(clone: Clone, stage: str, process: subprocess.Popen[bytes], how: str) -> None:
    """Kill a training by one of the methods in `METHODS`."""
    number, whom = signal.Signals[how.split()[0]], how.split(maxsplit=1)[1]
    running = clone.stage(stage)
    if whom == "everything":  # like a power loss
        for one in [*clone.processes()]:
            end(one, KILL)
    elif whom == "the group":  # like Ctrl-C
        os.killpg(process.pid, number)
    elif whom == "dvc":
        process.send_signal(number)
    elif whom == "the stage" and running is not None:
        end(running, number)
    elif whom == "by dvc queue kill":
        name = clone.run("dvc", "queue", "status").splitlines()
        tasks = [line.split()[1] for line in name if "Running" in line]
        clone.run("dvc", "queue", "kill", *tasks)


def end(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


METHODS = {
    "repro": ["SIGKILL the stage"] * 10
    + ["SIGKILL everything"] * 10
    + ["SIGTERM the stage"] * 5
    + ["SIGTERM dvc"] * 5
    + ["SIGINT the group"] * 10,
    "temp": ["SIGKILL the stage", "SIGKILL everything", "SIGTERM dvc", "SIGTERM the stage", "SIGINT the group"],
    "queue": ["SIGINT by dvc queue kill"] * 2 + ["SIGKILL the stage"] * 2 + ["SIGTERM the stage"],
    "pretrain": ["SIGKILL the stage"] * 3
    + ["SIGKILL everything"] * 2
    + ["SIGTERM dvc"] * 2
    + ["SIGTERM the stage"]
    + ["SIGINT the group"] * 2,
}


def commands(clone: Clone, mode: str) -> Callable[[int], subprocess.Popen[bytes]]:
    """Command that starts attempt n."""
    if mode == "temp":
        return lambda number: clone.start("dvc", "exp", "run", "--temp", "-n", f"attempt-{number}", "train")
    if mode == "queue":

        def queue(number: int) -> subprocess.Popen[bytes]:
            clone.run("dvc", "exp", "run", "--queue", "-n", f"attempt-{number}", "train")
            clone.start("dvc", "queue", "start").wait()  # its workers would keep a pipe open
            return clone.start("sleep", "infinity")

        return queue
    return lambda number: clone.start("dvc", "repro", "-s", "pretrain" if mode == "pretrain" else "train")


def finish(clone: Clone, mode: str, number: int) -> None:
    """Run the training to its end, uninterrupted."""
    if mode == "temp":
        clone.run("dvc", "exp", "run", "--temp", "-n", "last", "train")
        take(clone, "last")
    elif mode == "queue":
        clone.run("dvc", "exp", "run", "--queue", "-n", "last", "train")
        clone.start("dvc", "queue", "start").wait()  # its workers would keep a pipe open
        wait(lambda: "last" in succeeded(clone), 600, 2)
        take(clone, "last")
        clone.run("dvc", "queue", "stop")
        for one in clone.workers():
            end(one, TERM)
        wait(lambda: not clone.workers(), 30)
    else:
        clone.run("dvc", "repro", "-s", "pretrain" if mode == "pretrain" else "train")


def trained(folder: Path, images: int) -> Path:
    """Detector file of a training of one epoch in a clone of its own."""
    clone = Clone.create(folder, 1, images)
    clone.run("dvc", "repro", "train")
    return clone.folder / "models/detector.pt"


def take(clone: Clone, name: str) -> None:
    """Bring an experiment's training into the workspace; `dvc exp apply` needs files of later stages too."""
    refs = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = [one for one in refs if one.endswith(f"/{name}")]
    clone.run("git", "checkout", ref, "--", "dvc.lock", "reports/train_run.json")
    clone.run("dvc", "checkout", "--force", "train")


def succeeded(clone: Clone) -> list[str]:
    """Names of the queue's successful tasks."""
    lines = clone.run("dvc", "queue", "status").splitlines()
    return [line.split()[1] for line in lines if "Success" in line]


def compare_trainings(clone: Clone, uninterrupted: Clone) -> list[str]:
    """Differences between a killed and an uninterrupted training."""
    problems = []
    if not same_weights(clone.folder / "models/detector.pt", uninterrupted.folder / "models/detector.pt"):
        problems.append("the weights differ")
    ours, theirs = ([{**run, "time": ""} for run in one.losses()] for one in (clone, uninterrupted))
    if ours != theirs:
        problems.append("losses.csv differs")
    steps = list(range(1, len(theirs) + 1))
    if [int(run["step"]) for run in ours] != steps:
        problems.append("losses.csv does not hold every step exactly once")
    runs = clone.runs()
    if len(runs) != 1 or runs[0].info.status != "FINISHED":
        problems.append(f"runs: {[(run.info.run_name, run.info.status) for run in runs]}")
    run = clone.curves(runs[0].info.run_id)
    (other,) = uninterrupted.runs()
    reference = uninterrupted.curves(other.info.run_id)
    if [point[0] for point in run["loss"]] != steps:
        problems.append("the run does not hold every step exactly once")
    for name in reference.keys() | run.keys():
        pairs = [[(step, value) for step, _, value in one.get(name, [])] for one in (run, reference)]
        if pairs[0] != pairs[1]:
            problems.append(f"the run's {name} differs")
    times = {int(line["step"]): int(line["time"]) for line in clone.losses()}
    if any(times[step] != time_ms for step, time_ms, _ in run["loss"]):
        problems.append("times in the run and in the CSV differ")
    points = sum(map(len, run.values()))
    started = {key: value for key, value in runs[0].data.tags.items() if key.startswith("start.")}
    print(f"{len(steps)} steps, {points} points in {len(run)} curves of 1 run ({len(runs)} found) {started or ''}")
    return problems


def main() -> None:
    """Run one mode; exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=tuple(METHODS), default="repro")
    parser.add_argument("--kills", type=int, help="number of kills, drawn from those of the mode")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--started", action="store_true", help="start from a detector that is trained first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep all files there")
    options = parser.parse_args()
    draws = random.Random(options.seed)
    ways = list(METHODS[options.mode])
    draws.shuffle(ways)
    ways = ways[: options.kills]
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        first = trained(folder / "first", options.images) if options.started else None
        start = Clone.create(folder / "uninterrupted", options.epochs, options.images, first)
        stage = "pretrain" if options.mode == "pretrain" else "train"
        start.run("dvc", "repro", "prepare" if stage == "pretrain" else "pretrain")
        start.commit("prepared")
        clone = start.copy_to(folder / "killed")
        began = time.monotonic()
        start.run("dvc", "repro", "-s", stage)
        print(f"uninterrupted: {time.monotonic() - began:.0f} s", flush=True)
        check = Check(clone, stage, commands(clone, options.mode), draws, options.mode == "queue")
        kills = [way for way in ways if way.startswith("SIGKILL")]
        while_saving = set(kills[: (len(kills) + 1) // 2 - (len(kills) < 2)])
        began, saving_left = time.monotonic(), len(kills) * 2 // 5
        for number, way in enumerate(ways, 1):
            saving = way in while_saving and saving_left > 0
            saving_left -= saving
            if not check.attempt(number, way, saving):
                break
        finish(clone, options.mode, len(ways) + 1)
        print(f"killed {sum(check.kills.values())} times and finished: {time.monotonic() - began:.0f} s")
        print("   ".join(f"{count} x {how}" for how, count in sorted(check.kills.items())))
        print(f"{check.torn} checkpoints were half written at a kill; none of them was loaded")
        if stage == "train":
            check.problems += compare_trainings(clone, start)
        elif not same_weights(clone.folder / "models/backbone.pt", start.folder / "models/backbone.pt"):
            check.problems.append("the backbone weights differ")
        left = clone.processes() + clone.workers()
        check.problems += [f"process left at the end: {one.cmdline()}" for one in left]
    print(check.problems or "ok: bit-equal weights, one run, every step once, no process left")
    sys.exit(bool(check.problems))


if __name__ == "__main__":
    main()
