"""Time of `detection compare` for two experiments with 5,000 images and 80 classes.

    python -m benchmarks.compare                  # 1,000 bootstrap rounds of AP, AP50 and AP75
    python -m benchmarks.compare --rounds 100

The split is that of `benchmarks.evaluate`. One experiment is a commit of a temporary repository, the other
its workspace, where a twentieth of the detections is missing. The command runs in its own process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.evaluate import CLASSES, IMAGES, generate
from detection.data.loading.index import Index
from detection.evaluation.analysis.tables import per_class_table
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.params import load

ROOT = Path(__file__).parents[1]


def make_repository(folder: Path) -> None:
    """Create a repository whose commit and workspace are two experiments."""
    generate(folder, 1)
    index = _index(folder / "ground_truth.json")
    detections = SplitDetections.from_coco(index, msgspec.json.decode((folder / "detections.json").read_bytes()))
    for name in (".dvc", "data/prepared", "reports/train", "reports/evaluation/tables"):
        (folder / name).mkdir(parents=True)
    classes = [f"class {i}" for i in range(CLASSES)]
    index.save(folder / "data/prepared/test.npz")
    _write(
        folder / "data/prepared/meta.json",
        {"dataset": "generated", "classes": classes, "listing": {"test": "generated"}},
    )
    recipe = asdict(load(ROOT / "params.yaml").recipe)
    _write(folder / "reports/train/recipe.json", {"model": "m", "dataset": "generated", "seed": 0, "recipe": recipe})
    for step, kept in enumerate((np.arange(len(detections)), np.flatnonzero(np.arange(len(detections)) % 20))):
        results = detections.select(kept)
        by_coco = coco_metrics.score(index, results, classes)
        by_voc = voc_metrics.score(index, results, classes)
        _write(folder / "reports/evaluation/metrics.json", {**by_coco.stats, **by_voc.stats})
        _write(folder / "reports/evaluation/tables/detections.json", results.to_coco(index))
        counted = index.labels[~(index.difficult | index.crowd)]
        table = per_class_table(classes, by_coco, by_voc, counted)
        table.to_csv(folder / "reports/evaluation/tables/per_class.csv", index=False)
        if step == 0:
            for words in ("init -q", "add data reports", "-c user.name=b -c user.email=b@b commit -qm one"):
                subprocess.run(["git", *words.split()], cwd=folder, check=True)


def _index(truth: Path) -> Index:
    objects = json.loads(truth.read_bytes())["annotations"]
    objects.sort(key=lambda one: one["image_id"])
    boxes = np.array([one["bbox"] for one in objects], dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    image_ids = np.array([one["image_id"] for one in objects])
    names = np.array([str(i) for i in range(IMAGES)], dtype=np.bytes_)
    return Index(
        files=names,
        ids=names,
        sizes=np.full((IMAGES, 2), 640, dtype=np.int32),
        offsets=np.searchsorted(image_ids, np.arange(IMAGES + 1)).astype(np.int64),
        boxes=boxes.astype(np.float32),
        labels=np.array([one["category_id"] - 1 for one in objects], dtype=np.int64),
        difficult=np.zeros(len(objects), dtype=np.bool_),
        crowd=np.array([one["iscrowd"] for one in objects], dtype=np.bool_),
        areas=np.array([one["area"] for one in objects], dtype=np.float32),
    )


def _write(path: Path, content: object) -> None:
    path.write_bytes(msgspec.json.encode(content))


def main() -> None:
    """Run the command and print its cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_repository(Path(name))
        words = ("compare", "HEAD", "workspace", "--rounds", str(options.rounds))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": name}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "detection.cli", *words],
            cwd=name,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
    print(done.stdout[:300] or done.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{options.rounds} rounds, 5,000 images, 500,000 detections, 80 classes: {seconds:.1f} s, "
        f"CPU {used.ru_utime + used.ru_stime:.1f} s, {used.ru_maxrss / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()
