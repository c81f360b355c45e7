"""COCO metrics from JSON files: time and peak memory beside pycocotools and its faster successors.

    python -m benchmarks.evaluate                  # all parts; ten minutes
    python -m benchmarks.evaluate --part fast      # beside the fast peers: one thread and all, synthetic and real
    python -m benchmarks.evaluate --part slow      # beside pycocotools and faster-coco-eval, with our analysis
    python -m benchmarks.evaluate --part growth    # ours at COCO val's size and at ten times that size

Peers that are not installed are skipped (`benchmarks.evaluators`). The synthetic split is generated with a fixed
seed: 5,000 images, 36,000 objects in 80 classes (2 % crowds) and 500,000 detections, of which three eighths lie
near an object and most others have a class of their image. The real one is VOC2007 test with a detector's results
(`../shared/data/oracle/voc2007_test`, or `DETECTION_TEST_DATA`), written as COCO's files.

Every evaluator reads the same two JSON files in its own process, interleaved with the others; the figures are
medians and include its imports. `score` is the time after reading. `ours_compared` is 1,000 rounds of the paired
bootstrap of AP50 between these detections and the same detections with other scores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import evaluators
from detection.evaluation import external

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
        "images": [{"id": i, "height": 640, "width": 640} for i in range(num_images)],
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


def write_real(folder: Path, oracle: Path) -> None:
    """Write VOC2007 test and a detector's results on it as COCO's files."""
    data = external.read_voc(oracle / "VOCdevkit", "2007", "test", oracle / "detections", skip_unknown=True)
    truth, found = data.ground_truth, data.predictions
    ids = (truth.images + 1, truth.labels + 1, truth.boxes, truth.areas, truth.ignored.astype(int))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    assert data.sizes is not None
    content = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(data.sizes.astype(int).tolist(), 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(data.classes, 1)],
        "annotations": [{"id": i} | row for i, row in enumerate(_rows(names, ids), 1)],
    }
    (folder / "ground_truth.json").write_bytes(msgspec.json.encode(content))
    columns = (found.images + 1, found.labels + 1, found.boxes, found.scores)
    results = _rows(("image_id", "category_id", "bbox", "score"), columns)
    (folder / "detections.json").write_bytes(msgspec.json.encode(results))


def _rows(names: tuple[str, ...], columns: tuple[NDArray[Any], ...]) -> list[dict[str, Any]]:
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]


def measure(sides: list[tuple[str, Path]], repeats: int, *, all_threads: bool = False) -> list[dict[str, Any]]:
    """Return the medians of every side, interleaved, on the files of its folder."""
    runs: list[list[dict[str, Any]]] = [[] for _ in sides]
    threads = {} if all_threads else {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    limits = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in limits} | threads
    for _ in range(repeats):
        for (name, folder), mine in zip(sides, runs, strict=True):
            command = [sys.executable, "-m", "benchmarks.evaluators", name, str(folder)]
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
    sys.stdout.flush()


def beside_fast_peers(repeats: int) -> list[str]:
    """Measure beside the fast peers; return our share of the fastest one's time as lines."""
    names, lines = ["ours", *evaluators.installed(evaluators.PEERS)], []
    lines += [f"{peer} is not installed: skipped" for peer in evaluators.PEERS.keys() - set(names)]
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in ("synthetic", "real")}
        for folder in folders.values():
            folder.mkdir()
        generate(folders["synthetic"], 1)
        oracle = Path(os.environ.get("DETECTION_TEST_DATA", "../shared/data")) / "oracle/voc2007_test"
        if oracle.is_dir():
            write_real(folders["real"], oracle)
        else:
            del folders["real"]
            lines.append(f"{oracle} is absent: no real detections")
        for kind, folder in folders.items():
            for all_threads in (False, True):
                medians = measure([(side, folder) for side in names], repeats, all_threads=all_threads)
                rows = dict(zip(names, medians, strict=True))
                case = f"{kind} detections, {f'{os.cpu_count()} threads' if all_threads else 'one thread'}"
                show(case, rows)
                lines += _shares(case, rows, "wall" if all_threads else "total")
    return lines


def _shares(case: str, rows: dict[str, dict[str, Any]], key: str) -> list[str]:
    mine, theirs = rows["ours"], {name: row for name, row in rows.items() if name != "ours"}
    lines = [f"{case}: {name}'s metrics differ" for name, row in theirs.items() if row["stats"] != mine["stats"]]
    if theirs:
        fastest = min(theirs, key=lambda name: float(theirs[name][key]))
        smallest = min(theirs, key=lambda name: float(theirs[name]["MiB"]))
        lines.append(
            f"{case}: {'wall' if key == 'wall' else 'CPU'} time {mine[key] / theirs[fastest][key]:.2f} of {fastest}, "
            f"memory {mine['MiB'] / theirs[smallest]['MiB']:.2f} of {smallest}"
        )
    return lines


def beside_slow_peers(repeats: int) -> list[str]:
    """Measure our analyses, and ours beside pycocotools and faster-coco-eval; return the ratios as lines."""
    peers = evaluators.installed(evaluators.SLOW_PEERS)
    names = [*evaluators.SIDES, *peers]
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), 1)
        rows = dict(zip(names, measure([(name, Path(folder)) for name in names], repeats), strict=True))
    show("5,000 images, 36,000 objects, 500,000 detections", rows)
    mine, lines = rows["ours"], []
    for peer in peers:
        theirs = rows[peer]
        equal = "equal" if theirs["stats"] == mine["stats"] else "NOT equal"
        lines.append(
            f"{peer}: the 12 metrics are {equal}; CPU time {theirs['score'] / mine['score']:.1f}x scoring, "
            f"{theirs['total'] / mine['total']:.1f}x in total; memory {theirs['MiB'] / mine['MiB']:.1f}x"
        )
    lines += [f"{peer} is not installed: skipped" for peer in evaluators.SLOW_PEERS.keys() - set(peers)]
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
    parts = {"slow": beside_slow_peers, "growth": growth, "fast": beside_fast_peers}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--part", choices=parts, help="default: all")
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, load {os.getloadavg()}")
    selected = [options.part] if options.part else list(parts)
    lines = [line for part in selected for line in parts[part](options.repeats)]
    print(f"load at the end {os.getloadavg()}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
