"""Evaluators that `benchmarks.evaluate` compares, each run once in a process of its own.

    python -m benchmarks.evaluators ours FOLDER

Imports are part of the time, so numpy is imported late too. Peers are optional:

    pip install pycocotools faster-coco-eval hotcoco ultrafast-pycocotools vernier
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Side = Callable[[Path, Path], tuple[list[float], float]]


def ours(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Return COCO's 12 metrics and the CPU time at which the files had been read."""
    from detection.evaluation import external
    from detection.evaluation.protocol import coco_metrics
    from detection.evaluation.protocol.matching import match

    data = external.read_coco(truth, detections)
    loaded = time.process_time()
    overlaps = data.overlaps()
    return list(coco_metrics.score_matches(overlaps, match(overlaps), for_stats=True).stats.values()), loaded


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
    import numpy as np

    from detection.evaluation import external
    from detection.evaluation.analysis import bootstrap
    from detection.evaluation.analysis.resampling import BootstrapSample
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


def hotcoco(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Rust evaluator of hotcoco."""
    from hotcoco import COCO, COCOeval

    return _official(COCO, COCOeval, truth, detections)


def ultrafast_pycocotools(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Rust evaluator of ultrafast-pycocotools."""
    from ultrafast_pycocotools import COCO, COCOeval

    return _official(COCO, COCOeval, truth, detections)


def vernier(truth: Path, detections: Path) -> tuple[list[float], float]:
    """Rust evaluator of vernier; it parses the detections while it scores."""
    from vernier.instance import Bbox, CocoDataset, Evaluator

    objects = CocoDataset.from_json(truth.read_bytes())
    content = detections.read_bytes()
    loaded = time.process_time()
    threads = int(os.environ.get("RAYON_NUM_THREADS", 0)) or os.cpu_count() or 1
    summary = Evaluator(iou=Bbox(), parity_mode="strict").evaluate(objects, content, num_threads=threads)
    return [float(value) for value in summary.stats[:12]], loaded


def _official(coco: Any, evaluate: Any, truth: Path, detections: Path) -> tuple[list[float], float]:
    objects = coco(str(truth))
    evaluator = evaluate(objects, objects.loadRes(str(detections)), "bbox")
    loaded = time.process_time()
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [float(value) for value in evaluator.stats[:12]], loaded


SIDES: dict[str, Side] = {"ours": ours, "ours_with_analysis": ours_with_analysis, "ours_compared": ours_compared}
SLOW_PEERS: dict[str, Side] = {"pycocotools": pycocotools, "faster_coco_eval": faster_coco_eval}
PEERS: dict[str, Side] = {"hotcoco": hotcoco, "ultrafast_pycocotools": ultrafast_pycocotools, "vernier": vernier}
ALL = SIDES | SLOW_PEERS | PEERS


def installed(peers: dict[str, Side]) -> list[str]:
    """Names of the peers that can be imported."""
    return [name for name in peers if importlib.util.find_spec(name)]


def _peak_mib() -> float:
    """Peak memory; unlike `ru_maxrss`, it leaves out the parent's at the time of the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run(name: str, folder: Path) -> None:
    """Run one evaluator on a folder's `ground_truth.json` and `detections.json`; print its cost as JSON."""
    began, wall = time.process_time(), time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        stats, loaded = ALL[name](folder / "ground_truth.json", folder / "detections.json")
    ended = time.process_time()
    cost = {
        "load": loaded - began,
        "score": ended - loaded,
        "total": ended - began,
        "wall": time.monotonic() - wall,
        "MiB": _peak_mib(),
        "stats": stats,
    }
    print(json.dumps(cost))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
