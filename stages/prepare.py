"""Prepare the dataset: packed index per split, COCO ground truth of test, dataset card and figures."""

import logging

from detection import params
from detection.data.loading import prepared
from detection.data.sources import statistics
from detection.data.sources.dataset import check_learnable, read
from detection.doctor.label_stats import reliability_warnings
from detection.report.charts import dataset_figures as figures
from stages.entry import run

log = logging.getLogger("prepare")


def main() -> None:
    """Run the stage."""
    loaded = params.load()
    raw = read(loaded.dataset, loaded.data, loaded.prepare.checks)
    check_learnable(raw.name, raw.splits["train"], loaded.recipe.train_difficult)
    prepared.save(raw, loaded.data, tiles=loaded.prepare.tiles)
    statistics.save(statistics.describe(raw, loaded.data))
    figures.save_figures(raw)
    counts = ", ".join(f"{split} {len(index)}" for split, index in raw.splits.items())
    log.info("%s: images: %s; classes: %d", raw.name, counts, len(raw.classes))
    if raw.orientation.line:
        log.info("%s: %s", raw.name, raw.orientation.line)
    for line in raw.problems.lines(raw.problems.counts()):
        log.warning("%s", line)
    for line in reliability_warnings(raw.name, raw.entry, raw.splits, raw.classes):
        log.warning("%s", line)
    if loaded.data.digest is None and loaded.data.format != "shapes":
        log.info("to pin this data, add to datasets.%s in params.yaml:  digest: %s", raw.name, raw.digest)


if __name__ == "__main__":
    run(main)
