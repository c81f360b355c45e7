"""`detection doctor`: everything that is wrong with a dataset, in one list, and what makes it hard."""

import json as json_module
import logging
import math
from pathlib import Path

import numpy as np

from detection import params
from detection.data.sources.dataset import RawDataset, examine
from detection.data.sources.problems import KINDS
from detection.doctor import findings
from detection.doctor.sample_size import ap50_margin, reliability_warnings
from detection.errors import DataError
from detection.params.datasets import Dataset

log = logging.getLogger(__name__)
EXAMPLES = 5


def doctor(name: str, json: Path | None, model: str | None = None) -> str:
    """Read a dataset as `prepare` would, decode every picture, and list the faults.

    Args:
        name: A dataset of `params.yaml`.
        json: Where to write all faults: a list of `{kind, action, where, detail}`.
        model: Whose anchors are held against the objects; None: the model that `params.yaml` chooses.

    Returns:
        The report: a table of what would be prepared, per kind of fault its count and examples,
        how far scores on val and test can be trusted, what is peculiar about train's labels, and whether the
        model's anchors fit them.

    Raises:
        ParamsError: There is no such dataset.
        DataError: It is not there, or has faults that `prepare.checks` calls errors; after the report is
            logged.
    """
    chosen = params.load(dataset=name, model=model)
    raw = examine(name, chosen.data, chosen.prepare.checks, decode=True)
    if json:
        try:
            json.write_text(json_module.dumps(_records(raw), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"--json {json} cannot be written: {error.strerror}") from None
    train = raw.splits["train"]
    hard = findings.labels(raw, chosen.recipe) if len(train.labels) else []
    if len(train.labels):
        hard += ["", *findings.anchors(chosen.model, name, chosen.recipe, train, raw.classes)]
    trusted = _trust(raw, chosen.data)
    report = "\n".join(
        [f"{name} in {raw.root}", "", *_table(raw), "", *_faults(raw), "", *trusted, "", *hard]
    )
    if refused := raw.faults.refused():
        log.info("%s", report)
        raise DataError(
            f"{name} has {sum(refused.values())} faults that `prepare` refuses ({', '.join(refused)}); "
            f"mend them, or say at prepare.checks in params.yaml what is to be done"
        )
    return report


def _records(raw: RawDataset) -> list[dict[str, str]]:
    return [{**fault._asdict(), "action": raw.faults.action(fault.kind)} for fault in raw.faults.found]


def _table(raw: RawDataset) -> list[str]:
    """Pictures, objects and classes of each split, without what is left out."""
    rows: list[tuple[str, ...]] = [
        ("", "pictures", "objects", "without objects", "classes", "difficult", "crowd")
    ]
    for split, index in raw.splits.items():
        empty = int((np.diff(index.offsets) == 0).sum())
        counts = (len(index), len(index.boxes), empty, len(np.unique(index.labels)))
        flags = (int(index.difficult.sum()), int(index.crowd.sum()))
        rows.append((split, *(f"{count:,}" for count in (*counts, *flags))))
    lines = ["  " + f"{row[0]:<6}" + "".join(f"{cell:>17}" for cell in row[1:]) for row in rows]
    return [*lines, "", f"  {len(raw.classes)} classes: {_shortened(raw.classes)}"]


def _shortened(classes: tuple[str, ...], most: int = 20) -> str:
    return ", ".join(classes[:most]) + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _faults(raw: RawDataset) -> list[str]:
    """A block a kind: what it is, what `prepare` does about it, the first few."""
    counts = raw.faults.counts()
    if not counts:
        return ["  nothing is wrong with it"]
    lines = []
    for kind, count in counts.items():
        lines.append(f"  {count:>6,}  {KINDS[kind]}   [{kind}: {raw.faults.action(kind)}]")
        lines += [f"            {fault}" for fault in raw.faults.of(kind)[:EXAMPLES]]
        lines += [f"            … and {count - EXAMPLES:,} more"] if count > EXAMPLES else []
    return lines


def _trust(raw: RawDataset, dataset: Dataset) -> list[str]:
    """By how much chance moves the scores on val and test, and what else takes their meaning."""
    margins = {split: ap50_margin(raw.splits[split], len(raw.classes)) for split in ("val", "test")}
    parts = [f"{off:.2f} on {split}" for split, off in margins.items() if not math.isnan(off)]
    lines = ["  how far scores can be trusted"]
    if parts:
        lines.append(f"    chance alone moves AP50 by up to {', '.join(parts)} (19 times of 20)")
    return lines + [
        f"    {line}" for line in reliability_warnings(raw.name, dataset, raw.splits, raw.classes)
    ]
