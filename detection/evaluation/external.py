"""Objects and detections that somebody gives as files, whoever's detector it was."""

import codecs
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.errors import DataError
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions

log = logging.getLogger(__name__)

FARTHEST = 1e9
"""Pixels from the corner; an area of larger boxes could overflow."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExternalData:
    """A split and the detections on it, as the files say: nothing is rounded."""

    truth: GroundTruth
    found: Predictions
    classes: tuple[str, ...]
    """Label i is `classes[i]`."""
    pictures: tuple[str, ...]
    """What the files call picture i."""
    sizes: NDArray[np.float64] | None
    """[N, 2] height and width of the pictures; None where a file leaves one out."""

    def overlaps(self) -> Overlaps:
        """Compare the two sides."""
        return Overlaps.of(self.truth, self.found, len(self.classes))


def read_bytes(path: Path, what: str, *, may_be_empty: bool = False) -> bytes:
    """A file's content, without the byte order mark that some programs put first.

    Raises:
        DataError: It is not there, or holds nothing.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read: {error.strerror}; name another file") from None
    if not content.strip() and not may_be_empty:
        raise DataError(f"{path}: the file is empty; it should hold {what}")
    return content.removeprefix(codecs.BOM_UTF8)


def known_sizes(sizes: Sequence[tuple[float | None, float | None]]) -> NDArray[np.float64] | None:
    """[N, 2] of heights and widths, if all of them are given."""
    numbers = np.array(sizes, dtype=np.float64).reshape(-1, 2)  # None becomes NaN
    return numbers if np.all(numbers > 0) else None


def too_far(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[N] boxes [N, 4] with a number that no picture has pixels for."""
    far: NDArray[np.bool_] = np.abs(boxes).max(axis=1, initial=0) > FARTHEST
    return far


def rows_of(names: Sequence[int], known: Sequence[int]) -> NDArray[np.int64]:
    """Where each name stands among sorted known ones; -1: nowhere."""
    wanted, sorted_known = np.asarray(names, dtype=np.int64), np.asarray(known, dtype=np.int64)
    if len(sorted_known) == 0:
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(sorted_known, wanted), len(sorted_known) - 1)
    return np.where(sorted_known[place] == wanted, place, -1)


def refuse(bad: NDArray[np.bool_], say: Callable[[int], str]) -> None:
    """Stop at the first bad row.

    Raises:
        DataError: There is one; says how many more there are.
    """
    if bad.any():
        count = int(bad.sum())
        raise DataError(say(int(np.argmax(bad))) + (f" ({count - 1} more like it)" if count > 1 else ""))


def drop_unknown(
    unknown: NDArray[np.bool_], skip: bool, path: Path, say: Callable[[int], str]
) -> NDArray[np.bool_]:
    """Rows to keep: all, or where a person said to skip them, those that are known.

    Raises:
        DataError: Some are unknown and `skip` is false.
    """
    if not skip:
        refuse(unknown, lambda row: say(row) + "; mend it, or leave such detections out with --skip-unknown")
    elif unknown.any():
        log.warning("%s: left out %d detections of unknown pictures or classes", path, unknown.sum())
    return ~unknown
