"""Kill one training again and again, and see whether anything is lost.

    python -m benchmarks.kills                     # 40 under `dvc repro`: 20 SIGKILL, 10 SIGTERM, 10 SIGINT
    python -m benchmarks.kills --mode temp         # 5 under `dvc exp run --temp`
    python -m benchmarks.kills --mode queue        # 5 in DVC's queue, `dvc queue kill` among them
    python -m benchmarks.kills --mode pretrain     # 10 of the backbone's training
    python -m benchmarks.kills --kills 4 --epochs 2

Each kill comes after at least one new step, at a random moment or while a checkpoint is being written. In
the end the weights must be those of a training that nobody disturbed, bit by bit, in one MLflow row, with
every step once in the row and in the CSV. After each kill no process may be left. The last line says ok, or
what was wrong.
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

from benchmarks.clones import Clone, same_weights, wait

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
LIFE_S = 600.0


@dataclass
class Check:
    """A clone whose training is killed, and what was seen."""

    clone: Clone
    stage: str
    command: Callable[[int], subprocess.Popen[bytes]]
    random: random.Random
    queued: bool
    """Whether DVC's queue runs it."""
    torn: int = 0
    """Checkpoints whose writing was cut off."""
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def life(self, number: int, how: str, while_saving: bool) -> bool:
        """Start the training, kill it, look around; False where it came to its end first."""
        before, born = self.clone.saved_step(self.stage), time.time()
        process = self.command(number)
        reached, pause = (self._saving, 0.001) if while_saving else (self._stepped, 0.05)
        ready = wait(lambda: process.poll() is not None or reached(before, born), LIFE_S, pause)
        if not while_saving:
            time.sleep(self.random.random() * 1.5)
        if not ready or process.poll() is not None:
            self.faults.append(f"life {number} ended by itself: {process.poll()}")
            return False
        at = self.clone.step()
        kill(self.clone, self.stage, process, how)
        if self.queued:
            process.terminate()  # it only waits
        self.kills[how] += 1
        self._gone(process, number)
        half = list(self.clone.folder.glob(f".checkpoints/{self.stage}/*/*.writing"))
        self.torn += bool(half)
        after = self.clone.saved_step(self.stage)  # reads the file: it is whole
        saving_cut = ", a checkpoint half written" if half else ""
        print(f"life {number:2}: from {before}, {how} at {at}{saving_cut}; the next from {after}", flush=True)
        return True

    def _stepped(self, before: int, born: float) -> bool:
        """Whether a new step was taken in this life."""
        if self.stage == "train":
            return self.clone.step() > before and self.clone.stage("train") is not None
        path = self.clone.checkpoint(self.stage)
        return path.exists() and path.stat().st_mtime > born

    def _saving(self, before: int, born: float) -> bool:
        """Whether the checkpoint after a new step is being written."""
        files = self.clone.folder.glob(f".checkpoints/{self.stage}/*/state.pt.writing")
        return any(size(path) > 0 for path in files if newer(path, born))

    def _gone(self, process: subprocess.Popen[bytes], number: int) -> None:
        wait(lambda: process.poll() is not None, 90)
        if not wait(lambda: not self.clone.processes(), 90):
            left = [one.cmdline() for one in self.clone.processes()]
            self.faults.append(f"life {number}: processes are left: {left}")


def size(path: Path) -> int:
    """Bytes; 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def newer(path: Path, born: float) -> bool:
    """Whether a file was written since then."""
    try:
        return path.stat().st_mtime >= born
    except FileNotFoundError:
        return False


def kill(clone: Clone, stage: str, process: subprocess.Popen[bytes], how: str) -> None:
    """End a training by one of the ways that `WAYS` lists."""
    number, whom = signal.Signals[how.split()[0]], how.split(maxsplit=1)[1]
    running = clone.stage(stage)
    if whom == "everything":  # as a loss of power does
        for one in [*clone.processes()]:
            end(one, KILL)
    elif whom == "the group":  # as Ctrl-C does
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
    """Send a signal to a process that may just have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


WAYS = {
    "repro": ["SIGKILL the stage"] * 10
    + ["SIGKILL everything"] * 10
    + ["SIGTERM the stage"] * 5
    + ["SIGTERM dvc"] * 5
    + ["SIGINT the group"] * 10,
    "temp": [
        "SIGKILL the stage",
        "SIGKILL everything",
        "SIGTERM dvc",
        "SIGTERM the stage",
        "SIGINT the group",
    ],
    "queue": ["SIGINT by dvc queue kill"] * 2 + ["SIGKILL the stage"] * 2 + ["SIGTERM the stage"],
    "pretrain": ["SIGKILL the stage"] * 3
    + ["SIGKILL everything"] * 2
    + ["SIGTERM dvc"] * 2
    + ["SIGTERM the stage"]
    + ["SIGINT the group"] * 2,
}


def commands(clone: Clone, mode: str) -> Callable[[int], subprocess.Popen[bytes]]:
    """How a life begins."""
    if mode == "temp":
        return lambda number: clone.start("dvc", "exp", "run", "--temp", "-n", f"life-{number}", "train")
    if mode == "queue":

        def queue(number: int) -> subprocess.Popen[bytes]:
            clone.run("dvc", "exp", "run", "--queue", "-n", f"life-{number}", "train")
            clone.start("dvc", "queue", "start").wait()  # its workers would hold a pipe open
            return clone.start("sleep", "infinity")

        return queue
    return lambda number: clone.start("dvc", "repro", "-s", "pretrain" if mode == "pretrain" else "train")


def finish(clone: Clone, mode: str, number: int) -> None:
    """The life that nobody disturbs."""
    if mode == "temp":
        clone.run("dvc", "exp", "run", "--temp", "-n", "last", "train")
        take(clone, "last")
    elif mode == "queue":
        clone.run("dvc", "exp", "run", "--queue", "-n", "last", "train")
        clone.start("dvc", "queue", "start").wait()  # its workers would hold a pipe open
        wait(lambda: "last" in succeeded(clone), 600, 2)
        take(clone, "last")
        clone.run("dvc", "queue", "stop")
        for one in clone.workers():
            end(one, TERM)
        wait(lambda: not clone.workers(), 30)
    else:
        clone.run("dvc", "repro", "-s", "pretrain" if mode == "pretrain" else "train")


def take(clone: Clone, name: str) -> None:
    """Bring an experiment's training into the workspace; `dvc exp apply` wants later stages' files too."""
    refs = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = [one for one in refs if one.endswith(f"/{name}")]
    clone.run("git", "checkout", ref, "--", "dvc.lock", "reports/train/run.json")
    clone.run("dvc", "checkout", "--force", "train")


def succeeded(clone: Clone) -> list[str]:
    """Names of the queue's tasks that have come to a good end."""
    lines = clone.run("dvc", "queue", "status").splitlines()
    return [line.split()[1] for line in lines if "Success" in line]


def compare_trainings(clone: Clone, undisturbed: Clone) -> list[str]:
    """What differs between a training that was killed and one that was not."""
    faults = []
    if not same_weights(clone.folder / "models/detector.pt", undisturbed.folder / "models/detector.pt"):
        faults.append("the weights differ")
    ours, theirs = ([{**row, "time": ""} for row in one.losses()] for one in (clone, undisturbed))
    if ours != theirs:
        faults.append("losses.csv differs")
    steps = list(range(1, len(theirs) + 1))
    if [int(row["step"]) for row in ours] != steps:
        faults.append("losses.csv has not every step once")
    rows = clone.rows()
    if len(rows) != 1 or rows[0].info.status != "FINISHED":
        faults.append(f"rows: {[(row.info.run_name, row.info.status) for row in rows]}")
    row = clone.curves(rows[0].info.run_id)
    (other,) = undisturbed.rows()
    reference = undisturbed.curves(other.info.run_id)
    if [point[0] for point in row["loss"]] != steps:
        faults.append("the row has not every step once")
    for name in reference.keys() | row.keys():
        pairs = [[(step, value) for step, _, value in one.get(name, [])] for one in (row, reference)]
        if pairs[0] != pairs[1]:
            faults.append(f"the row's {name} differs")
    times = {int(line["step"]): int(line["time"]) for line in clone.losses()}
    if any(times[step] != time_ms for step, time_ms, _ in row["loss"]):
        faults.append("the row and the CSV have other times")
    points = sum(map(len, row.values()))
    print(f"{len(steps)} steps, {points} points in {len(row)} curves of 1 row ({len(rows)} found)")
    return faults


def main() -> None:
    """Run one mode; exits with 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=tuple(WAYS), default="repro")
    parser.add_argument("--kills", type=int, help="fewer than the mode has, drawn from it")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    options = parser.parse_args()
    draws = random.Random(options.seed)
    ways = list(WAYS[options.mode])
    draws.shuffle(ways)
    ways = ways[: options.kills]
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as scratch:
        folder = options.folder or Path(scratch)
        start = Clone.made(folder / "undisturbed", options.epochs, options.pictures)
        stage = "pretrain" if options.mode == "pretrain" else "train"
        start.run("dvc", "repro", "prepare" if stage == "pretrain" else "pretrain")
        start.commit("prepared")
        clone = start.copied(folder / "killed")
        began = time.monotonic()
        start.run("dvc", "repro", "-s", stage)
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        check = Check(clone, stage, commands(clone, options.mode), draws, options.mode == "queue")
        kills = [way for way in ways if way.startswith("SIGKILL")]
        while_saving = set(kills[: (len(kills) + 1) // 2 - (len(kills) < 2)])
        began, saving_left = time.monotonic(), len(kills) * 2 // 5
        for number, way in enumerate(ways, 1):
            saving = way in while_saving and saving_left > 0
            saving_left -= saving
            if not check.life(number, way, saving):
                break
        finish(clone, options.mode, len(ways) + 1)
        print(f"killed {sum(check.kills.values())} times and finished: {time.monotonic() - began:.0f} s")
        print("   ".join(f"{count} x {how}" for how, count in sorted(check.kills.items())))
        print(f"{check.torn} checkpoints were half written when the kill came; none of them was loaded")
        if stage == "train":
            check.faults += compare_trainings(clone, start)
        elif not same_weights(clone.folder / "models/backbone.pt", start.folder / "models/backbone.pt"):
            check.faults.append("the backbone's weights differ")
        left = clone.processes() + clone.workers()
        check.faults += [f"left at the end: {one.cmdline()}" for one in left]
    print(check.faults or "ok: bit-equal weights, one row, every step once, no process left")
    sys.exit(bool(check.faults))


if __name__ == "__main__":
    main()
