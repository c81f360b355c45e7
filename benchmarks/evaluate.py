"""COCO metrics from JSON files: CPU time and peak memory against pycocotools and faster-coco-eval.

    python -m benchmarks.evaluate                  # against both, then our scaling; four minutes
    python -m benchmarks.evaluate --part growth    # ours at COCO val's size and at ten times that size
    python -m benchmarks.evaluate --repeats 3      # medians; pycocotools takes a minute per repeat
    uv pip install faster-coco-eval                # optional; skipped where it is not installed

The split is generated with a fixed seed: 5,000 images, 36,000 objects in 80 classes (2 % crowds) and 500,000
detections, of which three eighths lie near an object and most others have a class of their image. Every
evaluator reads the same two JSON files in its own process, interleaved, with one thread; `score` is the time
after reading. `ours_compared` is 1,000 rounds of the paired bootstrap of AP50 between these detections and
the same detections with other scores.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

IMAGES, OBJECTS, DETECTIONS, CLASSES = 5_000, 36_000, 500_000, 80


def generate(folder: Path, scale: int) -> None:
    """Write `ground_truth.json` and `detections.json`."""
    rng = np.random.default_rng(0)
    num_images, num_objects, num_detections = IMAGES * scale, OBJECTS * scale, DETECTIONS * scale
    images = np.sort(rng.integers(0, num_images, num_objects))
    weights = 1 / np.arange(1, CLASSES + 1) ** 0.9  # the first class has a fifth of the objects, as in COCO
    labels = rng.choice(CLASSES, num_objects, p=weights / weights.sum())
    sides = np.exp(rng.normal(4.0, 0.9, (num_objects, 2))).clip(4, 500)
    boxes = np.concatenate([rng.uniform(0, 1, (num_objects, 2)) * (640 - sides).clip(1), sides], axis=1).round(2)
    crowd = rng.random(num_objects) < 0.02
    annotations = [
        {"id": i, "image_id": image, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": ignored}
        for i, (image, label, box, area, ignored) in enumerate(
            zip(
                images.tolist(),
                labels.tolist(),
                boxes.tolist(),
                (boxes[:, 2] * boxes[:, 3] * rng.uniform(0.4, 1, num_objects)).tolist(),
                crowd.astype(int).tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    truth = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(CLASSES)],
        "annotations": annotations,
    }
    (folder / "ground_truth.json").write_bytes(msgspec.json.encode(truth))

    near = num_detections * 3 // 8
    source = rng.integers(0, num_objects, near)
    far_sides = np.exp(rng.normal(4.0, 0.9, (num_detections - near, 2))).clip(4, 500)
    jitter = rng.normal(0, 0.12, (near, 4)) * np.tile(boxes[source][:, 2:], 2)
    far = np.concatenate([rng.uniform(0, 1, far_sides.shape) * (640 - far_sides).clip(1), far_sides], axis=1)
    detected = np.concatenate([boxes[source] + jitter, far])
    detected[:, 2:] = detected[:, 2:].clip(1)
    guess = np.where(rng.random(near) < 0.8, labels[source], rng.choice(CLASSES, near, p=weights / weights.sum()))
    scores = np.concatenate([rng.beta(2, 3, near), rng.beta(1, 8, num_detections - near)])
    far_images = rng.integers(0, num_images, num_detections - near)
    # the label of the first object of each image
    present = labels[np.minimum(np.searchsorted(images, far_images), num_objects - 1)]
    random = rng.choice(CLASSES, len(far_images), p=weights / weights.sum())
    columns = (
        np.concatenate([images[source], far_images]),
        np.concatenate([guess, np.where(rng.random(len(far_images)) < 0.6, present, random)]) + 1,
        detected.round(2),
        scores.round(4),
    )
    names = ("image_id", "category_id", "bbox", "score")
    with (folder / "detections.json").open("wb") as file:
        file.write(b"[")
        for low in range(0, num_detections, 100_000):  # a list of all would take gigabytes
            part = (column[low : low + 100_000].tolist() for column in columns)
            rows = [dict(zip(names, row, strict=True)) for row in zip(*part, strict=True)]
            file.write((b"," if low else b"") + msgspec.json.encode(rows)[1:-1])
        file.write(b"]")


def ours(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Return COCO's 12 metrics and the CPU time at which the files had been read."""
    from detection.evaluation import external
    from detection.evaluation.protocol import coco_metrics
    from detection.evaluation.protocol.matching import match

    data = external.read_coco(truth, detections)
    loaded = time.process_time()
    overlaps = data.overlaps()
    return list(coco_metrics.score_matches(overlaps, match(overlaps)).stats.values()), loaded


def ours_with_analysis(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Score and run the whole error analysis."""
    from detection.evaluation import external
    from detection.evaluation.analysis import tables
    from detection.evaluation.protocol import coco_metrics
    from detection.evaluation.protocol.matching import match

    data = external.read_coco(truth, detections)
    loaded = time.process_time()
    overlaps = data.overlaps()
    matches = match(overlaps)
    score = coco_metrics.score_matches(overlaps, matches)
    tables.build_tables(overlaps, matches, data.classes, data.images)
    return list(score.stats.values()), loaded


def ours_compared(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Paired bootstrap of AP50: difference, interval, fraction of rounds in which the second is better."""
    from detection.evaluation import external
    from detection.evaluation.analysis import bootstrap
    from detection.evaluation.analysis.bootstrap import BootstrapSample
    from detection.evaluation.protocol.coco_metrics import AT_50
    from detection.evaluation.protocol.matching import match
    from detection.evaluation.protocol.overlaps import Overlaps

    data = external.read_coco(truth, detections)
    noise = np.random.default_rng(1).normal(0, 0.1, len(data.predictions.scores))
    second = dataclasses.replace(data.predictions, scores=data.predictions.scores + noise)
    loaded = time.process_time()
    samples = []
    for predictions in (data.predictions, second):
        overlaps = Overlaps.of(data.ground_truth, predictions, len(data.classes))
        sample = BootstrapSample.of(overlaps, match(overlaps), num_images=len(data.images), thresholds=(AT_50,))
        samples.append(sample)
    first, changed = samples
    return list(bootstrap.paired(first, changed).stats["AP50"]), loaded


def pycocotools(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Evaluator of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _official(COCO, COCOeval, truth, detections)


def faster_coco_eval(truth: Path, detections: Path) -> tuple[list[float], float]:
    """C++ evaluator of faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    return _official(COCO, COCOeval_faster, truth, detections)


def _official(coco: Any, evaluate: Any, truth: Path, detections: Path) -> tuple[list[float], float]:
    objects = coco(str(truth))
    evaluator = evaluate(objects, objects.loadRes(str(detections)), "bbox")
    loaded = time.process_time()
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [float(value) for value in evaluator.stats[:12]], loaded


SIDES = {"ours": ours, "ours_with_analysis": ours_with_analysis, "ours_compared": ours_compared}
PEERS = {"pycocotools": pycocotools, "faster_coco_eval": faster_coco_eval}


def child(name: str, folder: Path) -> None:
    """Run one side once and print its cost as JSON."""
    side = (SIDES | PEERS)[name]
    began, wall = time.process_time(), time.monotonic()
    stats, loaded = side(folder / "ground_truth.json", folder / "detections.json")
    ended = time.process_time()
    cost = {
        "load": loaded - began,
        "score": ended - loaded,
        "total": ended - began,
        "wall": time.monotonic() - wall,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "stats": stats,
    }
    print("\n" + json.dumps(cost))


def measure(sides: list[tuple[str, Path]], repeats: int) -> list[dict[str, Any]]:
    """Return the medians of every side, interleaved, on the files of its folder."""
    runs: list[list[dict[str, Any]]] = [[] for _ in sides]
    for _ in range(repeats):
        for (name, folder), mine in zip(sides, runs, strict=True):
            command = [sys.executable, "-m", "benchmarks.evaluate", "--side", name, "--folder", str(folder)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            mine.append(json.loads(done.stdout.splitlines()[-1]))
    keys = ("load", "score", "total", "wall", "MiB")
    return [
        {key: statistics.median(run[key] for run in mine) for key in keys} | {"stats": mine[0]["stats"]}
        for mine in runs
    ]


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print(
        f"\n{title}\n\n| | read, CPU s | score, CPU s | total, CPU s | wall s | peak MiB |\n|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        cells = " | ".join(f"{row[key]:.2f}" for key in ("load", "score", "total", "wall"))
        print(f"| {name} | {cells} | {row['MiB']:.0f} |")


def beside_peers(repeats: int) -> list[str]:
    """Measure all sides at COCO val's size; return the ratios as lines."""
    installed = [name for name in PEERS if importlib.util.find_spec(name)]
    names = [*SIDES, *installed]
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), 1)
        rows = dict(zip(names, measure([(name, Path(folder)) for name in names], repeats), strict=True))
    show("5,000 images, 36,000 objects, 500,000 detections", rows)
    mine, lines = rows["ours"], []
    for peer in installed:
        theirs = rows[peer]
        equal = "equal" if theirs["stats"] == mine["stats"] else "NOT equal"
        lines.append(
            f"{peer}: the 12 metrics are {equal}; CPU time {theirs['score'] / mine['score']:.1f}x scoring, "
            f"{theirs['total'] / mine['total']:.1f}x in total; memory {theirs['MiB'] / mine['MiB']:.1f}x"
        )
    lines += [f"{peer} is not installed: skipped" for peer in PEERS.keys() - set(installed)]
    added = rows["ours_with_analysis"]["score"] / mine["score"] - 1
    lines.append(f"the error analysis adds {added:.1f}x the time of scoring")
    lines.append(f"1,000 bootstrap rounds of AP50 of two experiments: {rows['ours_compared']['score']:.1f} CPU s")
    return lines


def growth(repeats: int) -> list[str]:
    """Measure our side at both sizes, alternating; return the ratio as a line."""
    with tempfile.TemporaryDirectory() as name:
        folders = {scale: Path(name) / str(scale) for scale in (1, 10)}
        for scale, folder in folders.items():
            folder.mkdir()
            generate(folder, scale)
        one, ten = measure([("ours", folder) for folder in folders.values()], repeats)
    show("ours at COCO val's size and at ten times that size", {"once": one, "ten times": ten})
    score, memory = ten["score"] / one["score"], ten["MiB"] / one["MiB"]
    return [f"ten times the size: {score:.1f}x scoring, {memory:.1f}x the memory"]


def main() -> None:
    """Measure; print tables, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--part", choices=["peers", "growth"], help="default: both")
    parser.add_argument("--side", choices=[*SIDES, *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        child(options.side, options.folder)
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    lines = beside_peers(options.repeats) if options.part != "growth" else []
    lines += growth(options.repeats) if options.part != "peers" else []
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
