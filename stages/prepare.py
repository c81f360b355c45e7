"""Read the raw dataset; leave a packed index per split, COCO ground truth of test, and the dataset's card."""

import logging
from pathlib import Path

from detection import params
from detection.data import prepared
from detection.data.read import read
from stages.entry import run

log = logging.getLogger("prepare")


def main() -> None:
    """Run the stage."""
    asked = params.load()
    raw = read(asked.dataset, asked.data)
    prepared.save(raw, asked.data)
    counts = ", ".join(f"{split} {len(index)}" for split, index in raw.splits.items())
    log.info("%s: %s pictures, %d classes", raw.name, counts, len(raw.classes))
    if asked.data.digest is None and asked.data.format != "shapes":
        log.info("to pin this data, add to datasets.%s in params.yaml:  digest: %s", raw.name, raw.digest)
    Path("reports/dataset").mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    run(main)
