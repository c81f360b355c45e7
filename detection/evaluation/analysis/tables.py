"""Tables of an evaluation as data frames and JSON, and the code that writes them to files."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.analysis import error_types, hard_examples, recall, thresholds
from detection.evaluation.analysis.error_types import (
    BACKGROUND_IOU,
    ERROR_TYPES,
    FOREGROUND_IOU,
    CrossClassPairs,
    ErrorTypes,
    MatchResult,
)
from detection.evaluation.analysis.thresholds import Calibration, Sweep
from detection.evaluation.protocol.coco_metrics import AT_50, RECALLS, CocoScore
from detection.evaluation.protocol.matching import Matches
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.voc_metrics import VocScore

if TYPE_CHECKING:
    import pandas as pd

ALL_CLASSES = "all"
"""`class` of the first rows: pooled detections in `score_sweep.csv` and `best_f1.csv`, the mean over the
classes in `pr_curves.csv`. A class of the dataset may have the same name."""
MISSED_COLUMN, BACKGROUND_ROW = "(missed)", "(background)"
"""Last column and last row of the confusion matrix; brackets keep them apart from class names."""
THRESHOLD_RULE = "greatest micro-averaged F1 at IoU 0.5"

Tables = Mapping[str, "pd.DataFrame | dict[str, Any] | bytes"]
"""File contents by file name: a CSV table, a JSON object, or encoded content."""


def build_tables(
    overlaps: Overlaps,
    matches: Matches,
    classes: Sequence[str],
    image_ids: Sequence[str],
    sizes: NDArray[np.number] | None = None,
) -> Tables:
    """Error analysis of a detector: error types, thresholds, recall and hard examples.

    Args:
        overlaps: Ground truth and detections.
        matches: COCO's matching of `overlaps`.
        classes: Names, in label order.
        image_ids: [N] image ids, in the order of `overlaps`.
        sizes: [N, 2] image heights and widths; None omits recall by truncation.

    Returns:
        Tables by file name:

        * `analysis.json`: `iou` thresholds, `AP50`, `errors` (count and dAP50 of each type), `threshold` of
          the best F1 with its precision and recall, `calibration_error`;
        * `errors.csv`: `error_type`, `count`, `dAP50`;
        * `errors_per_class.csv`: `class`, `objects`, `true_positives`, one column per error type, `missed`;
        * `confusion.csv`: `actual`, `predicted`, `count` at the threshold of the best F1, without zeros;
        * `score_sweep.csv`: `class`, `score`, `precision`, `recall`, `f1`;
        * `best_f1.csv`: the threshold of the best F1 of each class, with the same columns;
        * `calibration.csv`: `score_from`, `detections`, `mean_score`, `precision`;
        * `recall.csv`, `localization.csv`: see `recall.recall_by_attribute` and `recall.localization`;
        * `hard_examples.json`: see `hard_examples.rank_images`.
    """
    import pandas as pd

    result = MatchResult.of(overlaps, matches)
    cross_class = CrossClassPairs.of(overlaps, result)
    errors = error_types.analyze(overlaps, result, cross_class)
    pooled, per_class = thresholds.sweeps(overlaps, result)
    score = pooled.best.score
    sweeps = [(ALL_CLASSES, pooled), *zip(classes, per_class, strict=True)]
    calibration = thresholds.calibrate(overlaps, result)
    confusion = thresholds.confusion_matrix(overlaps, result, cross_class, score)
    return {
        "analysis.json": _summary(errors, pooled, calibration),
        "errors.csv": pd.DataFrame(
            {"error_type": list(errors.counts), "count": errors.counts.values(), "dAP50": errors.gains.values()}
        ),
        "errors_per_class.csv": _errors_per_class(overlaps, result, errors, classes),
        "confusion.csv": _confusion_table(confusion, classes),
        "score_sweep.csv": _sweep_table(sweeps),
        "best_f1.csv": pd.DataFrame([{"class": name, **asdict(sweep.best)} for name, sweep in sweeps]),
        "calibration.csv": _calibration_table(calibration),
        "recall.csv": recall.recall_by_attribute(overlaps, result, score, sizes),
        "localization.csv": recall.localization(overlaps, result, score),
        "hard_examples.json": hard_examples.rank_images(
            overlaps, result, cross_class, errors, score, classes, image_ids
        ),
    }


def per_class_table(
    classes: Sequence[str], coco: CocoScore, voc: VocScore | None = None, labels: NDArray[np.int64] | None = None
) -> "pd.DataFrame":
    """Scores of each class, in label order; NaN in a class without objects.

    Args:
        classes: Names, in label order.
        coco: COCO's scores: columns `AP`, `AP50`, `AP75`.
        voc: VOC's scores, if any: columns `voc_ap50_11pt`, `voc_ap50_area`.
        labels: Classes of the objects that count, if known: column `objects`.
    """
    import pandas as pd

    columns: dict[str, Any] = {"class": list(classes)}
    if labels is not None:
        columns["objects"] = np.bincount(labels, minlength=len(classes))
    columns |= coco.per_class
    if voc is not None:
        columns |= {"voc_ap50_11pt": voc.ap_11pt, "voc_ap50_area": voc.ap_area}
    return pd.DataFrame(columns)


def pr_curve_table(classes: Sequence[str], coco: CocoScore) -> "pd.DataFrame":
    """Precision at IoU 0.5 over COCO's 101 recalls.

    Returns:
        Columns `class`, `recall`, `precision`: first `ALL_CLASSES`, the mean over the classes that have
        objects, then every class. Precision is NaN in a class without objects and 0 at a recall that is not
        reached.
    """
    import pandas as pd

    curves = coco.precision[AT_50].T  # [C, 101]
    known = curves[~np.isnan(curves).any(axis=1)]
    mean = known.mean(axis=0) if len(known) else np.full(len(RECALLS), np.nan)
    return pd.DataFrame(
        {
            "class": np.repeat(np.array([ALL_CLASSES, *classes], dtype=object), len(RECALLS)),
            "recall": np.tile(RECALLS.round(2), len(classes) + 1),
            "precision": np.concatenate([mean, *curves]),
        }
    )


def encode(tables: Tables) -> dict[str, bytes]:
    """Contents of the files of tables."""
    return {name: _encode(table) for name, table in tables.items()}


def write_tables(folder: Path, tables: Tables) -> None:
    """Write tables to a folder: under temporary names first, so that an error leaves the old files intact."""
    contents = encode(tables)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in contents}
    try:
        for name, path in temporary.items():
            path.write_bytes(contents[name])
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def nan_to_null(value: Any) -> Any:
    """The same JSON value with None for NaN, which JSON cannot represent."""
    if isinstance(value, dict):
        return {name: nan_to_null(item) for name, item in value.items()}
    if isinstance(value, list):
        return [nan_to_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _encode(table: "pd.DataFrame | dict[str, Any] | bytes") -> bytes:
    if isinstance(table, bytes):
        return table
    if isinstance(table, dict):
        return (json.dumps(nan_to_null(table), indent=2) + "\n").encode()
    return table.to_csv(index=False).encode()


def _summary(errors: ErrorTypes, pooled: Sweep, calibration: Calibration) -> dict[str, Any]:
    return {
        "iou": {"foreground": FOREGROUND_IOU, "background": BACKGROUND_IOU},
        "AP50": errors.ap50,
        "errors": {name: {"count": count, "dAP50": errors.gains[name]} for name, count in errors.counts.items()},
        "threshold": {"rule": THRESHOLD_RULE, **asdict(pooled.best)},
        "calibration_error": calibration.error,
    }


def _errors_per_class(
    overlaps: Overlaps, result: MatchResult, errors: ErrorTypes, classes: Sequence[str]
) -> "pd.DataFrame":
    import pandas as pd

    predicted, actual = overlaps.predictions.labels, overlaps.ground_truth.labels

    def count(labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(labels, minlength=len(classes))

    return pd.DataFrame(
        {
            "class": list(classes),
            "objects": count(actual[result.counted]),
            "true_positives": count(predicted[result.true_positive]),
            **{name: count(predicted[errors.types == number]) for number, name in enumerate(ERROR_TYPES)},
            "missed": count(actual[errors.missed]),
        }
    )


def _confusion_table(matrix: NDArray[np.int64], classes: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    rows = np.array([*classes, BACKGROUND_ROW], dtype=object)
    columns = np.array([*classes, MISSED_COLUMN], dtype=object)
    actual, predicted = np.nonzero(matrix)
    return pd.DataFrame({"actual": rows[actual], "predicted": columns[predicted], "count": matrix[actual, predicted]})


def _sweep_table(sweeps: Sequence[tuple[str, Sweep]]) -> "pd.DataFrame":
    import pandas as pd

    names = np.array([name for name, _ in sweeps], dtype=object)
    columns = {
        "score": [sweep.scores for _, sweep in sweeps],
        "precision": [sweep.precision for _, sweep in sweeps],
        "recall": [sweep.recall for _, sweep in sweeps],
        "f1": [sweep.f1 for _, sweep in sweeps],
    }
    rows = np.repeat(names, [len(scores) for scores in columns["score"]])
    return pd.DataFrame({"class": rows, **{name: np.concatenate(parts) for name, parts in columns.items()}})


def _calibration_table(calibration: Calibration) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        {
            "score_from": calibration.low,
            "detections": calibration.detections,
            "mean_score": calibration.score,
            "precision": calibration.precision,
        }
    )
