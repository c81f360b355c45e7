"""The whole analysis of an evaluation as tables, and as files."""

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
    BACKGROUND,
    FOREGROUND,
    KINDS,
    CrossClassPairs,
    MatchResult,
)
from detection.evaluation.protocol.matching import Matches
from detection.evaluation.protocol.overlaps import Overlaps

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""All classes in one pot."""
MISSED, BACKGROUND_CLASS = "(missed)", "(background)"
"""Last column and last row of the confusion matrix; brackets keep them apart from a class's name."""
RULE = "greatest F1 of all detections in one pot, at IoU 0.5"

Tables = Mapping[str, "pd.DataFrame | dict[str, Any] | bytes"]
"""Files by name: CSV, JSON, or what stands in it already."""


def tables(
    overlaps: Overlaps,
    matches: Matches,
    classes: Sequence[str],
    picture_ids: Sequence[str],
    sizes: NDArray[np.number] | None = None,
) -> Tables:
    """Why a detector fails, where to look, and from which score on it should be believed.

    Args:
        overlaps: The sparse pass.
        matches: COCO's matching of it.
        classes: Names, in label order.
        picture_ids: What picture i of the overlaps is called.
        sizes: [N, 2] their heights and widths; None: it is not known which objects are cut off.

    Returns:
        By file name:

        * `analysis.json`: `iou`, AP50 and what each kind of error costs, the threshold of best F1 and what it
          brings, the calibration error;
        * `errors.csv`: `kind`, `count`, `dAP50`;
        * `errors_per_class.csv`: `class`, `objects`, `right`, a column a kind, `missed`;
        * `confusion.csv`: `actual`, `predicted`, `count` at that threshold, zeros left out;
        * `score_sweep.csv`: `class`, `score`, `precision`, `recall`, `f1`;
        * `best_f1.csv`: the threshold of best F1 of each class alone;
        * `calibration.csv`: `score_from`, `detections`, `mean_score`, `precision`;
        * `recall.csv`, `localisation.csv`: see `recall.by_kind` and `recall.localisation`;
        * `pictures.json`: which pictures to look at, see `pictures.shortlists`.
    """
    import pandas as pd

    verdicts = MatchResult.of(overlaps, matches)
    strangers = CrossClassPairs.of(overlaps, verdicts)
    errors = error_types.analyse(overlaps, verdicts, strangers)
    whole, of_class = thresholds.sweeps(overlaps, verdicts)
    best = whole.best
    sweeps = [(ALL, whole), *zip(classes, of_class, strict=True)]
    calibration = thresholds.calibrate(overlaps, verdicts)
    matrix = thresholds.confusion(overlaps, verdicts, strangers, best.score)
    actual, predicted = np.nonzero(matrix)
    names = np.array([*classes, ""], dtype=object)
    rows, columns = names.copy(), names.copy()
    rows[-1], columns[-1] = BACKGROUND_CLASS, MISSED
    return {
        "analysis.json": {
            "iou": {"right": FOREGROUND, "background": BACKGROUND},
            "AP50": errors.ap50,
            "errors": {
                kind: {"count": errors.counts[kind], "dAP50": errors.gains[kind]} for kind in errors.counts
            },
            "threshold": {"rule": RULE, **asdict(best)},
            "calibration_error": calibration.error,
        },
        "errors.csv": pd.DataFrame(
            {"kind": list(errors.counts), "count": errors.counts.values(), "dAP50": errors.gains.values()}
        ),
        "errors_per_class.csv": _errors_per_class(overlaps, verdicts, errors, classes),
        "confusion.csv": pd.DataFrame(
            {"actual": rows[actual], "predicted": columns[predicted], "count": matrix[actual, predicted]}
        ),
        "score_sweep.csv": pd.concat(
            [
                pd.DataFrame(
                    {
                        "class": name,
                        "score": s.scores,
                        "precision": s.precision,
                        "recall": s.recall,
                        "f1": s.f1,
                    }
                )
                for name, s in sweeps
            ],
            ignore_index=True,
        ),
        "best_f1.csv": pd.DataFrame([{"class": name, **asdict(s.best)} for name, s in sweeps]),
        "calibration.csv": pd.DataFrame(
            {
                "score_from": calibration.low,
                "detections": calibration.detections,
                "mean_score": calibration.score,
                "precision": calibration.precision,
            }
        ),
        "recall.csv": recall.by_kind(overlaps, verdicts, best.score, sizes),
        "localisation.csv": recall.localisation(overlaps, verdicts, best.score),
        "pictures.json": hard_examples.rank_images(
            overlaps, verdicts, strangers, errors, best.score, classes, picture_ids
        ),
    }


def write(folder: Path, content: Tables) -> None:
    """Write tables under their names: each file whole, and none under its name before all are written."""
    contents = {name: _encoded(one) for name, one in content.items()}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {name: folder / f".{name}.{os.getpid()}" for name in contents}
    try:
        for name, path in unfinished.items():
            path.write_bytes(contents[name])
        for name, path in unfinished.items():
            os.replace(path, folder / name)
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)


def _encoded(one: "pd.DataFrame | dict[str, Any] | bytes") -> bytes:
    if isinstance(one, bytes):
        return one
    text = json.dumps(jsonable(one), indent=2) + "\n" if isinstance(one, dict) else one.to_csv(index=False)
    return text.encode()


def _errors_per_class(
    overlaps: Overlaps, verdicts: MatchResult, errors: error_types.ErrorTypes, classes: Sequence[str]
) -> "pd.DataFrame":
    import pandas as pd

    found, truth = overlaps.found.labels, overlaps.truth.labels

    def count(labels: Any) -> Any:
        return np.bincount(labels, minlength=len(classes))

    return pd.DataFrame(
        {
            "class": list(classes),
            "objects": count(truth[verdicts.counted]),
            "right": count(found[verdicts.right]),
            **{kind: count(found[errors.kind == number]) for number, kind in enumerate(KINDS)},
            "missed": count(truth[errors.missed]),
        }
    )


def jsonable(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {name: jsonable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [jsonable(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
