"""Training step on the CPU against torchvision's classes: same weights, batch, size and threads.

    python -m benchmarks.step                          # all systems
    python -m benchmarks.step retinanet ssd300         # some
    python -m benchmarks.step --rounds 9 --threads 1
    python -m benchmarks.step --finetune               # frozen BatchNorm, the backbone's last three stages trained

Both sides alternate within one process, and medians are compared; the peak memory of each side is measured in
its own process. Ours uses float32 and, on a CPU that multiplies in bfloat16, also bf16, its default precision there.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.sides import CASES, Step, build, make_batch, our_step, their_step, timed
from detection.device import pick_precision

CLASSES = 90


def steps_of(name: str, precision: torch.dtype, sides: str, finetune: bool) -> list[Step]:
    """Step functions of the sides named in `sides`."""
    case = CASES[name]
    height, width, count = case.small
    torch.manual_seed(0)
    ours, theirs = build(case, CLASSES, finetune)
    images, targets = make_batch(count, height, width, CLASSES, "cpu")
    steps: list[Step] = []
    if "ours" in sides:
        steps.append(our_step(ours, images, targets, precision))
    if "torchvision" in sides:
        steps.append(their_step(theirs, images, targets, torch.float32, case.background))
    return steps


def compare(name: str, precision: torch.dtype, rounds: int, finetune: bool) -> list[list[float]]:
    """Median wall seconds and CPU seconds of both sides, ours first."""
    steps = steps_of(name, precision, "ours torchvision", finetune)
    for step in steps:
        step()
    times = [[timed(step) for step in steps] for _ in range(rounds)]
    return [[statistics.median(one[side][clock] for one in times) for side in range(2)] for clock in range(2)]


def high_water_mark() -> int:
    """Peak resident MiB of this process; `getrusage` would include its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def peak(name: str, side: str, threads: int, finetune: bool) -> int:
    """Peak MiB of three steps of one side in its own process."""
    command = [sys.executable, "-m", "benchmarks.step", name, "--side", side, "--threads", str(threads)]
    command += ["--finetune"] * finetune
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print one row per system and the smallest ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--side", choices=("ours", "torchvision"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.names or [name for name, case in CASES.items() if case.builder]
    if options.side:
        (step,) = steps_of(names[0], torch.float32, options.side, options.finetune)
        for _ in range(3):
            step()
        print(high_water_mark())
        return
    default = pick_precision("auto", torch.device("cpu"))
    precisions = [torch.float32] if default == torch.float32 else [torch.float32, default]
    print(f"{options.threads} thread(s), {options.rounds} rounds, medians; our default here is {default}")
    print("system                     precision  batch        ours s  torchvision s  ratio (CPU)  peak MiB")
    worst = float("inf")
    for name in names:
        height, width, count = CASES[name].small
        memory = [peak(name, side, options.threads, options.finetune) for side in ("ours", "torchvision")]
        for precision in precisions:
            (wall, their_wall), (cpu, their_cpu) = compare(name, precision, options.rounds, options.finetune)
            ratio = their_cpu / cpu
            worst = min(worst, ratio)
            print(
                f"{name:26} {str(precision).removeprefix('torch.'):10} {count} x {height}x{width}  "
                f"{wall:6.2f}  {their_wall:13.2f}  {their_wall / wall:5.2f} ({ratio:.2f})  "
                f"{memory[0]} / {memory[1]}",
                flush=True,
            )
    print(f"smallest ratio of CPU time: {worst:.2f}")


if __name__ == "__main__":
    main()
