"""Soak test: a disk that fills up with checkpoints, then `make fresh`. Needs root, for a small tmpfs.

    python -m tests.soak.disk

The checkpoints are on a file system with room for one and a half of them. The training must stop with a
one-line error that names the file, and leave a checkpoint that can be loaded. With more room the same
command resumes and ends with the weights of an uninterrupted training. Then everything runs again from
scratch: all steps, in a second run, with the same weights. The last line is `ok` or the list of problems.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.soak.clones import Clone, same_weights

DETECTOR = "models/detector.pt"


def mount(folder: Path, options: str) -> None:
    """Mount a file system in memory, or remount it with other options."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def fill(clone: Clone, reference: Clone) -> list[str]:
    """Train on a disk that is too small, then on a larger one."""
    folder, problems = clone.folder / ".checkpoints/train", []
    room = reference.checkpoint().stat().st_size * 3 // 2
    folder.mkdir(parents=True)
    mount(folder, f"size={room}")
    try:
        process = clone.start("dvc", "repro", "-s", "train")
        code = process.wait()
        output = Path(f"{clone.folder}.log").read_text()
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        step = clone.saved_step()  # loads the checkpoint
        print(f"a disk of {room >> 20} MiB: exit code {code}, checkpoint complete at step {step}")
        print("\n".join(errors))
        if not code or len(errors) != 1 or "No space left on device" not in errors[0] or "Traceback" in output:
            problems.append(f"a full disk: exit code {code}, {errors}")
        if step < 1:
            problems.append("no checkpoint")
        mount(folder, "remount,size=2g")
        clone.run("dvc", "repro", "-s", "train")
        if not same_weights(clone.folder / DETECTOR, reference.folder / DETECTOR):
            problems.append("the weights after a full disk differ")
        if len(clone.runs()) != 1:
            problems.append(f"{len(clone.runs())} runs after a full disk")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    return problems


def fresh(clone: Clone) -> list[str]:
    """Run everything again from scratch."""
    before = {run.info.run_id for run in clone.runs()}
    kept = clone.folder / "before.pt"
    kept.write_bytes((clone.folder / DETECTOR).read_bytes())
    output = clone.run("dvc", "repro", "--force", "--no-run-cache", "train", DETECTION_FRESH="1")
    new = [run for run in clone.runs() if run.info.run_id not in before]
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    print(f"from scratch: ran {ran}, {len(new)} new run")
    problems = [] if ran == ["check", "prepare", "pretrain", "train"] else [f"fresh ran only {ran}"]
    problems += ["fresh reused or resumed something"] * ("resuming" in output or "reus" in output)
    steps = [point[0] for point in clone.curves(new[0].info.run_id)["loss"]] if len(new) == 1 else []
    if steps != list(range(1, len(clone.losses()) + 1)):
        problems.append(f"fresh: {len(new)} new runs, {len(steps)} steps")
    if not same_weights(kept, clone.folder / DETECTOR):
        problems.append("fresh: the weights differ")
    return problems


def main() -> None:
    """Run both; exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="disk-", ignore_cleanup_errors=True) as scratch:
        reference = Clone.create(Path(scratch) / "reference", options.epochs, num_images=32)
        reference.run("dvc", "repro", "pretrain")
        clone = reference.copy_to(Path(scratch) / "full")
        reference.run("dvc", "repro", "-s", "train")
        problems = fill(clone, reference) + fresh(reference)
    print(problems or "ok: one-line error, last checkpoint complete, everything repeated on demand")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
