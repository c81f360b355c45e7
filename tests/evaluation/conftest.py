"""Small ground truth and detections."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from detection.data.loading.index import Index, Record, pack
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import MakeIndex


@pytest.fixture(scope="session")
def make_index() -> MakeIndex:
    """Builds an index from `(boxes, labels)` or `(boxes, labels, difficult)` per image."""

    def make(*images: tuple[ArrayLike, ...], crowd: bool = False) -> Index:
        records = []
        for number, (boxes, labels, *flags) in enumerate(images):
            corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
            flagged = np.asarray(flags[0] if flags else np.zeros(len(corners)), dtype=bool)
            none = np.zeros(len(corners), dtype=bool)
            records.append(
                Record(
                    file=f"{number}.png",
                    id=f"image {number}",
                    height=200,
                    width=300,
                    boxes=corners,
                    labels=np.asarray(labels, dtype=np.int64),
                    difficult=none if crowd else flagged,
                    crowd=flagged if crowd else none,
                    areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
                )
            )
        return pack(records)

    return make


@pytest.fixture(scope="session")
def perfect() -> Callable[[Index], SplitDetections]:
    """Detections equal to the objects of an index."""

    def find(index: Index) -> SplitDetections:
        images = np.repeat(np.arange(len(index)), np.diff(index.offsets))
        return SplitDetections.pack(images, index.boxes, np.ones(len(images)), index.labels)

    return find
