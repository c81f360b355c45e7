"""Score the trained detector on the test split; leaves `reports/evaluation/`."""

import json
import logging
from pathlib import Path

from detection import params
from stages.entry import run

log = logging.getLogger(__name__)
OUT = Path("reports/evaluation")
DETECTOR = Path("models/detector.pt")


def main() -> None:
    """Detect on every test picture, score by COCO's and VOC's protocols, and tell the experiment's row."""
    chosen = params.load()
    import msgspec

    from detection.data.prepared import Prepared
    from detection.evaluation import (
        analysis,
        bootstrap,
        coco,
        curves,
        inference,
        official,
        per_class,
        speed,
        voc,
    )
    from detection.evaluation.matching import match
    from detection.evaluation.overlaps import Overlaps, picture_order
    from detection.evaluation.resampling import Sample
    from detection.models.build import check_classes, load_detector
    from detection.tracking.evaluation import log_evaluation

    prepared = Prepared.load()
    prepared.check_unchanged("test")
    loaded = load_detector(DETECTOR)
    check_classes(DETECTOR, loaded, prepared.classes)
    index = prepared.index("test")
    results = inference.run(
        loaded.detector,
        index,
        prepared.root,
        loaded.recipe,
        batch_size=chosen.evaluate.batch_size,
        device=chosen.evaluate.device,
        precision=chosen.evaluate.precision,
        score_threshold=chosen.evaluate.score_threshold,
    )
    overlaps = Overlaps.of_index(index, results, len(loaded.classes))
    matches = match(overlaps)
    by_coco, by_voc = coco.score_matches(overlaps, matches), voc.score_overlaps(overlaps)
    if chosen.evaluate.verify:
        official.verify(overlaps, by_coco)
    table = per_class.table(index, loaded.classes, by_coco, by_voc)
    stats = {**by_coco.stats, **by_voc.stats}
    spread = bootstrap.intervals(Sample.of(overlaps, matches, pictures=len(index)))

    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "metrics.json").write_text(json.dumps(analysis.jsonable(stats), indent=2) + "\n", encoding="utf-8")
    (OUT / "detections.json").write_bytes(msgspec.json.encode(results.to_coco(index)))
    table.to_csv(OUT / "per_class.csv", index=False)
    curves.table(by_coco, loaded.classes).to_csv(OUT / "pr_curves.csv", index=False)
    order = picture_order(index)
    ids = [name.decode() for name in index.ids[order]]
    tables = analysis.tables(overlaps, matches, loaded.classes, ids, index.sizes[order])
    figures = speed.measure(loaded.detector, index, prepared.root, loaded.recipe, chosen.evaluate)
    others = {"intervals.json": spread.to_json(loaded.classes), "speed.json": figures}
    analysis.write(OUT, {**tables, **others})
    for name in ("AP", "AP50", "AP75", "voc_ap50_11pt"):
        log.info("test %-14s %.4f", name, stats[name])
    by_class = dict(zip((f"AP/{name}" for name in loaded.classes), by_coco.per_class["AP"], strict=True))
    metrics = {f"test/{name}": float(value) for name, value in {**stats, **by_class}.items()}
    metrics |= speed.flat(figures)
    log_evaluation(params=chosen, metrics=metrics, out=OUT / "run.json", artifacts=OUT)


if __name__ == "__main__":
    run(main)
