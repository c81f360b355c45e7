"""Score the trained detector on the test split; leaves `reports/evaluation/`."""

import logging
from pathlib import Path

from detection import params
from stages.entry import run

log = logging.getLogger(__name__)
OUT = Path("reports/evaluation")
DETECTOR = Path("models/detector.pt")
SAID = ("AP", "AP50", "AP75", "voc_ap50_11pt")


def main() -> None:
    """Detect on every test picture, score by COCO's and VOC's protocols, and tell the experiment's row."""
    chosen = params.load()
    import msgspec

    from detection import inference, profiling
    from detection.data.prepared import Prepared
    from detection.evaluation.analysis.tables import write_tables
    from detection.evaluation.evaluate import evaluate
    from detection.models.build import check_classes, load_detector
    from detection.tracking.lifecycle import log_evaluation

    prepared = Prepared.load()
    prepared.check_unchanged("test")
    loaded = load_detector(DETECTOR)
    check_classes(DETECTOR, loaded, prepared.classes)
    index = prepared.index("test")
    results = inference.run_detector(
        loaded.detector,
        index,
        prepared.root,
        loaded.recipe,
        batch_size=chosen.evaluate.batch_size,
        device=chosen.evaluate.device,
        precision=chosen.evaluate.precision,
        score_threshold=chosen.evaluate.score_threshold,
    )
    found = evaluate(index, results, loaded.classes, verify=chosen.evaluate.verify)
    figures = profiling.measure(loaded.detector, index, prepared.root, loaded.recipe, chosen.evaluate)
    detections = msgspec.json.encode(results.to_coco(index))
    write_tables(OUT, {**found.tables, "speed.json": figures, "detections.json": detections})

    for name in SAID:
        log.info("test %-14s %.4f", name, found.stats[name])
    metrics = found.metrics() | profiling.flat(figures)
    log_evaluation(chosen, metrics)


if __name__ == "__main__":
    run(main)
