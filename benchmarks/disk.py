"""A disk that fills up under a training's checkpoints; then `make fresh`. Needs root, for a small tmpfs.

    python -m benchmarks.disk

The checkpoints lie on a file system with room for one and a half of them. The training must stop with one
line that says what and where, and leave a checkpoint that can be loaded. With more room the same command
goes on, to the weights of a training that nobody disturbed. In the end everything is run again from
nothing: every step is taken again, into a second row, with the same weights. The last line says ok, or
what was wrong.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.clones import Clone, same_weights

DETECTOR = "models/detector.pt"


def mount(folder: Path, options: str) -> None:
    """Mount a file system in memory, or change the one that is there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def fill(clone: Clone, reference: Clone) -> list[str]:
    """Train on a disk that is too small, then on a larger one."""
    folder, faults = clone.folder / ".checkpoints/train", []
    room = reference.checkpoint().stat().st_size * 3 // 2
    folder.mkdir(parents=True)
    mount(folder, f"size={room}")
    try:
        process = clone.start("dvc", "repro", "-s", "train")
        code = process.wait()
        said = Path(f"{clone.folder}.log").read_text()
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        step = clone.saved_step()  # loads the checkpoint
        print(f"a disk of {room >> 20} MiB: exit code {code}, checkpoint whole at step {step}")
        print("\n".join(errors))
        if not code or len(errors) != 1 or "No space left on device" not in errors[0] or "Traceback" in said:
            faults.append(f"a full disk: exit code {code}, {errors}")
        if step < 1:
            faults.append("no checkpoint was left")
        mount(folder, "remount,size=2g")
        clone.run("dvc", "repro", "-s", "train")
        if not same_weights(clone.folder / DETECTOR, reference.folder / DETECTOR):
            faults.append("the weights after a full disk differ")
        if len(clone.rows()) != 1:
            faults.append(f"{len(clone.rows())} rows after a full disk")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    return faults


def fresh(clone: Clone) -> list[str]:
    """Run everything again from nothing."""
    before = {row.info.run_id for row in clone.rows()}
    kept = clone.folder / "before.pt"
    kept.write_bytes((clone.folder / DETECTOR).read_bytes())
    said = clone.run("dvc", "repro", "--force", "--no-run-cache", "train", DETECTION_FRESH="1")
    new = [row for row in clone.rows() if row.info.run_id not in before]
    ran = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    print(f"from nothing: ran {ran}, {len(new)} new row")
    faults = [] if ran == ["check", "prepare", "pretrain", "train"] else [f"fresh ran only {ran}"]
    faults += ["fresh reused or went on"] * ("going on" in said or "is reused" in said)
    steps = [point[0] for point in clone.curves(new[0].info.run_id)["loss"]] if len(new) == 1 else []
    if steps != list(range(1, len(clone.losses()) + 1)):
        faults.append(f"fresh: {len(new)} new rows, {len(steps)} steps")
    if not same_weights(kept, clone.folder / DETECTOR):
        faults.append("fresh: the weights differ")
    return faults


def main() -> None:
    """Run both; exits with 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="disk-", ignore_cleanup_errors=True) as scratch:
        reference = Clone.made(Path(scratch) / "reference", options.epochs, pictures=32)
        reference.run("dvc", "repro", "pretrain")
        clone = reference.copied(Path(scratch) / "full")
        reference.run("dvc", "repro", "-s", "train")
        faults = fill(clone, reference) + fresh(reference)
    print(faults or "ok: one clear line, the last good checkpoint whole, and everything again on demand")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
