"""The table of scores by class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detection.data.index import Index
from detection.evaluation.protocol.coco_metrics import CocoScore
from detection.evaluation.protocol.voc_metrics import VocScore

if TYPE_CHECKING:
    import pandas as pd


def table(index: Index, classes: Sequence[str], coco: CocoScore, voc: VocScore) -> "pd.DataFrame":
    """Scores by class, in label order.

    Args:
        index: The ground truth.
        classes: Names, in label order.
        coco: From `coco.score`.
        voc: From `voc.score`.

    Returns:
        Columns `class`, `objects` (that count: neither difficult nor crowd), `AP`, `AP50`, `AP75`,
        `voc_ap50_11pt`, `voc_ap50_area`. NaN in a class without such objects.
    """
    import pandas as pd

    counted = index.labels[~(index.difficult | index.crowd)]
    return pd.DataFrame(
        {
            "class": list(classes),
            "objects": np.bincount(counted, minlength=len(classes)),
            **coco.per_class,
            "voc_ap50_11pt": voc.ap_11pt,
            "voc_ap50_area": voc.ap_area,
        }
    )
