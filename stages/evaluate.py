"""Evaluate the trained detector on the test split; writes `reports/evaluation/`."""

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from detection.files import DETECTOR, EVALUATED_JSON, EVALUATION_TABLES, REPORTS_EVALUATION, md5
from detection.params import Params, load
from stages.entry import run

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
LOGGED_METRICS = ("AP", "AP50", "AP75", "voc_ap50_11pt")


def main() -> None:
    """Detect on every test image, compute COCO's and VOC's metrics, and log them to the MLflow run."""
    params = load()
    from detection import launch
    from detection.device import pick_device, pick_devices

    device, devices = pick_device(params.evaluate.device), 1
    if device == pick_device(params.train.device):
        devices = pick_devices(params.train.devices, device, params.recipe.batch_size)
    launch.run(devices, "stages.evaluate", device, partial(evaluate_detector, params, device), (REPORTS_EVALUATION,))


def evaluate_detector(params: Params, device: "torch.device") -> None:
    """Evaluate in this process, alone or as one of several ranks, which share the images."""
    import msgspec

    from detection import distributed, process_group, profiling
    from detection.data.loading.prepared import Prepared
    from detection.data.loading.tiles import cut
    from detection.evaluation.analysis.tables import Tables, write_tables
    from detection.evaluation.evaluate import evaluate
    from detection.evaluation.protocol.results import describe_ids
    from detection.inference import run_detector
    from detection.models.build import check_classes, load_detector
    from detection.tracking.lifecycle import log_evaluation

    prepared = Prepared.load()
    prepared.check_unchanged("test")
    loaded, digest = load_detector(DETECTOR), md5(DETECTOR)
    check_classes(DETECTOR, loaded, prepared.classes)
    index, recipe = prepared.index("test"), loaded.recipe
    detections = run_detector(
        loaded.detector,
        index,
        prepared.root,
        recipe,
        batch_size=params.evaluate.batch_size,
        workers=params.train.workers,
        device=params.evaluate.device,
        precision=params.evaluate.precision,
        score_threshold=params.evaluate.score_threshold,
        tiles=loaded.tiles,
        before=partial(process_group.join, device, "evaluate"),
    )
    if not distributed.is_main():
        return
    evaluation = evaluate(index, detections, loaded.classes, verify=params.evaluate.verify)
    seen = cut(index, loaded.tiles) if loaded.tiles else index
    speed = profiling.measure(loaded.detector, seen, prepared.root, recipe, params.evaluate)
    encoded = msgspec.json.encode(detections.to_coco(index))
    ids = msgspec.json.encode(describe_ids(index, loaded.classes))
    files: Tables = {"speed.json": speed, "detections.json": encoded, "detection_ids.json": ids}
    scored: Tables = {EVALUATED_JSON.name: {"detector": digest, "time": time.time_ns() // 1_000_000}}
    write_tables(EVALUATION_TABLES, {**evaluation.tables, **files, **scored})
    write_tables(REPORTS_EVALUATION, {"metrics.json": evaluation.stats})

    for name in LOGGED_METRICS:
        log.info("test %-14s %.4f", name, evaluation.stats[name])
    log_evaluation(params, evaluation.metrics() | profiling.metrics(speed))


if __name__ == "__main__":
    run(main)
