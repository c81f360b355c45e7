"""Read the raw dataset; leave a packed index per split, COCO ground truth of test, and the dataset's card."""

import logging

from detection import params
from detection.data import prepared, statistics
from detection.data.sources.dataset import read
from detection.doctor.sample_size import reliability_warnings
from detection.report.charts import dataset_figures as figures
from stages.entry import run

log = logging.getLogger("prepare")


def main() -> None:
    """Run the stage."""
    asked = params.load()
    raw = read(asked.dataset, asked.data, asked.prepare.checks)
    prepared.save(raw, asked.data)
    statistics.save(statistics.describe(raw, asked.data))
    figures.save_figures(raw)
    counts = ", ".join(f"{split} {len(index)}" for split, index in raw.splits.items())
    log.info("%s: pictures: %s; classes: %d", raw.name, counts, len(raw.classes))
    for line in raw.faults.lines(raw.faults.counts()):
        log.warning("%s", line)
    for line in reliability_warnings(raw.name, asked.data, raw.splits, raw.classes):
        log.warning("%s", line)
    if asked.data.digest is None and asked.data.format != "shapes":
        log.info("to pin this data, add to datasets.%s in params.yaml:  digest: %s", raw.name, raw.digest)


if __name__ == "__main__":
    run(main)
