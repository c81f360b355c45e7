"""Precision-recall curves, read off COCO's precision array."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detection.evaluation.protocol.coco_metrics import AT_50, RECALLS, CocoScore

if TYPE_CHECKING:
    import pandas as pd

MEAN = "all"
"""Name of the mean over the classes."""


def per_class(score: CocoScore, classes: Sequence[str]) -> "pd.DataFrame":
    """Columns `class`, `AP`, `AP50`, `AP75`; NaN in a class without objects."""
    import pandas as pd

    return pd.DataFrame({"class": list(classes), **score.per_class})


def table(score: CocoScore, classes: Sequence[str]) -> "pd.DataFrame":
    """Precision at IoU 0.5 over COCO's 101 recalls.

    Args:
        score: From `coco.score`.
        classes: Names, in label order.

    Returns:
        Columns `class`, `recall`, `precision`: first the mean over the classes that have objects,
        named `all`, then every class. A class without objects has NaN; a recall that is not reached
        has precision 0.
    """
    import pandas as pd

    curves = score.precision[AT_50].T  # [C, 101]
    known = curves[~np.isnan(curves).any(axis=1)]
    mean = known.mean(axis=0) if len(known) else np.full(len(RECALLS), np.nan)
    return pd.DataFrame(
        {
            "class": np.repeat(np.array([MEAN, *classes], dtype=object), len(RECALLS)),
            "recall": np.tile(RECALLS.round(2), len(classes) + 1),
            "precision": np.concatenate([mean, *curves]),
        }
    )
