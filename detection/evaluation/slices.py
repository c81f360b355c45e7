"""Parts of external data: some classes, or the images that share the value of an attribute."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.errors import DataError
from detection.evaluation.analysis import bootstrap
from detection.evaluation.analysis.resampling import BootstrapSample
from detection.evaluation.external import ExternalData
from detection.evaluation.protocol import voc_metrics
from detection.evaluation.protocol.matching import CocoLimits, match
from detection.text import did_you_mean

IMAGE_COLUMN = "image"
Slices = Mapping[str, Mapping[str, NDArray[np.int64]]]
"""Rows of images by attribute and value."""


def of_classes(data: ExternalData, names: Sequence[str]) -> ExternalData:
    """Return the data with some classes only, in the order of the file; all images stay.

    Raises:
        DataError: A name is not a class.
    """
    for name in names:
        if name not in data.classes:
            raise DataError(f"--classes: {name!r} is not a class; {did_you_mean(name, data.classes)}")
    kept = [label for label, name in enumerate(data.classes) if name in names]
    return _restricted(data, "labels", np.array(kept), len(data.classes), classes=tuple(data.classes[i] for i in kept))


def of_images(data: ExternalData, rows: NDArray[np.int64]) -> ExternalData:
    """Return the data with some images only, in their order."""
    return _restricted(
        data,
        "images",
        rows,
        len(data.images),
        images=tuple(data.images[row] for row in rows.tolist()),
        files=tuple(data.files[row] for row in rows.tolist()) if data.files else (),
        sizes=None if data.sizes is None else data.sizes[rows],
    )


def _restricted(data: ExternalData, column: str, kept: NDArray[np.int64], count: int, **changes: Any) -> ExternalData:
    """Keep the objects and detections whose `column`, a number below `count`, is in `kept`; renumber the column."""
    number = np.full(count, -1)
    number[kept] = np.arange(len(kept))
    parts: dict[str, Any] = {}
    for name in ("ground_truth", "predictions"):
        part: Any = getattr(data, name)
        part = part.take(np.flatnonzero(number[getattr(part, column)] >= 0))
        parts[name] = replace(part, **{column: number[getattr(part, column)]})
    return replace(data, **parts, **changes)


def read(path: Path, data: ExternalData) -> Slices:
    """Read a CSV file with the column `image` and a column per attribute; an empty cell leaves the image out.

    Args:
        path: The file. `image` is an image id or a file name.
        data: Ground truth with the images.

    Raises:
        DataError: The file is missing or has no such columns, or names an unknown image.
    """
    row_of = {name: row for row, name in enumerate(data.files)} | {name: row for row, name in enumerate(data.images)}
    slices: dict[str, dict[str, list[int]]] = {}
    for line, entry in _lines(path):
        image = entry.pop(IMAGE_COLUMN)
        if image not in row_of:
            raise DataError(f"{path}: line {line}: image {image!r} is not in the ground truth; delete the line")
        for attribute, value in entry.items():
            if value:
                slices.setdefault(attribute, {}).setdefault(value, []).append(row_of[image])
    if not slices:
        raise DataError(f"{path}: it has no value; write a line per image, as `{IMAGE_COLUMN},weather` and `17,rain`")
    return {
        attribute: {value: np.unique(rows) for value, rows in sorted(values.items())}
        for attribute, values in slices.items()
    }


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            if IMAGE_COLUMN not in columns or len(set(columns)) < max(2, len(columns)):
                raise DataError(f"{path}: the first line is not `{IMAGE_COLUMN},attribute,…`, with different names")
            reader.fieldnames = columns
            for entry in reader:
                if None in entry or None in entry.values():
                    raise DataError(f"{path}: line {reader.line_num}: expected {len(columns)} values")
                yield reader.line_num, {name: value.strip() for name, value in entry.items()}
    except OSError as error:
        raise DataError(f"{path}: cannot read the slices: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {error}") from None


def score(
    data: ExternalData, slices: Slices, limits: CocoLimits, voc: Mapping[str, Any] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Score every slice alone.

    Args:
        data: Ground truth and predictions.
        slices: Images of each slice.
        limits: COCO's limits.
        voc: Arguments of `voc_metrics.match`, to score by VOC's rules instead of COCO's.

    Returns:
        By attribute and value: `images`, `objects`, and by score `value`, `low` and `high`.
    """
    return {
        attribute: {value: _score(of_images(data, rows), limits, voc) for value, rows in values.items()}
        for attribute, values in slices.items()
    }


def _score(data: ExternalData, limits: CocoLimits, voc: Mapping[str, Any] | None) -> dict[str, Any]:
    overlaps, count = data.overlaps(), len(data.images)
    if voc is None:
        sample = BootstrapSample.of(overlaps, match(overlaps, limits), num_images=count)
        result = bootstrap.intervals(sample)
    else:
        sample = BootstrapSample.of_voc(overlaps, voc_metrics.match(overlaps, **voc), num_images=count)
        result = bootstrap.voc_intervals(sample)
    objects = int(np.sum(~data.ground_truth.ignored))
    return {"images": count, "objects": objects} | {name: one._asdict() for name, one in result.stats.items()}


def rows(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of `slices.csv`: `attribute`, `value`, `images`, `objects`, and each score with `_low` and `_high`."""
    result = []
    for attribute, values in scores.items():
        for value, entry in values.items():
            row: dict[str, Any] = {"attribute": attribute, "value": value}
            for name, one in entry.items():
                if isinstance(one, Mapping):
                    row |= {name: one["value"], f"{name}_low": one["low"], f"{name}_high": one["high"]}
                else:
                    row[name] = one
            result.append(row)
    return result


def text(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Lines of a table: a slice per line, each score with its interval."""
    cells = []
    for attribute, values in scores.items():
        names = [name for name, one in next(iter(values.values())).items() if isinstance(one, Mapping)]
        cells.append([attribute, "images", "objects", *names])
        for value, entry in values.items():
            numbers = [_interval(entry[name]) for name in names]
            cells.append([f"  {value}", f"{entry['images']:,}", f"{entry['objects']:,}", *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]


def _interval(one: Mapping[str, float]) -> str:
    if math.isnan(one["value"]):
        return "-"
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
