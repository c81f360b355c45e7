"""Problems of raw data, collected by readers and checks so that one run reports them all.

`prepare.checks` in `params.yaml` sets an action per problem type: `error` refuses the dataset, `drop` leaves
out the object or image, `clip` clips the box, `keep` keeps it unchanged.

The checks here follow the reading: images against annotations, boxes, and splits against each other. Each adds
to `Problems` and applies its action; `error` is treated as `drop`, so that all problems are collected before the
dataset is refused.

Letters: N images, T boxes of a split.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.data.sources.orientation import Orientation
from detection.ops import boxes as box_ops
from detection.params.stages import Checks

if TYPE_CHECKING:
    from detection.data.sources.image_headers import Header

PROBLEM_TYPES = {
    "missing_annotation": "images or list entries without an annotation file",
    "broken_annotation": "annotations that cannot be read",
    "unsafe_name": "names that point outside the dataset folder",
    "duplicate_id": "ids used twice, or images listed under two ids",
    "unlisted_image": "annotations of images that are not listed",
    "unknown_class": "objects whose class is not in the dataset's classes",
    "zero_area": "boxes with zero or negative width or height",
    "duplicate_object": "objects annotated twice",
    "missing_image": "missing image files",
    "broken_image": "images that cannot be read or are truncated",
    "image_size_mismatch": "images whose size differs from their annotation",
    "exif_rotation": "images with an EXIF rotation",
    "box_outside_image": "boxes that extend beyond their image",
    "degenerate_box": "boxes thinner than a pixel, or with an aspect ratio above 100",
    "split_leak": "identical images in two splits",
}
"""Description of each problem type, in report order; each is a key of `prepare.checks`."""
MAX_COORDINATE = 1e9
"""Limit of the sum of a box's absolute coordinates in pixels, from which it is a `broken_annotation`."""
ACTION_SUFFIX = {"drop": " dropped", "clip": " clipped", "keep": " kept", "background": " read as background"}
FIXES = {
    "missing_annotation": "such as prepare.checks.missing_annotation: background, if these images show no object",
    "image_size_mismatch": "such as prepare.checks.image_size_mismatch: keep, if the boxes fit the images",
    "exif_rotation": "such as prepare.checks.exif_rotation: keep",
    "duplicate_object": "such as prepare.checks.duplicate_object: keep",
    "unknown_class": "such as prepare.checks.unknown_class: drop, or complete the dataset's `classes`",
}
"""Actions that suit a problem type; `drop` suits the others."""
LISTED_TWICE = (
    "give each image one entry with all its objects; prepare.checks.duplicate_id: drop leaves out the second entry "
    "with its objects, for entries that are equal"
)
MAX_EXAMPLES = 3


class Problem(NamedTuple):
    """A problem of one file or entry."""

    type: str
    """Key of `PROBLEM_TYPES`."""
    where: str
    """File relative to the dataset folder; for COCO also the entry."""
    detail: str
    """Description with the values concerned."""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class Problems:
    """Problems of one dataset and the action set for each type.

    problems = Problems(checks)
    problems.add("unknown_class", "Annotations/a.xml", "'horze'")
    problems.refused()                 # {"unknown_class": 1} if its action is `error`
    """

    def __init__(self, checks: Checks) -> None:
        self.entries: list[Problem] = []
        self.hints: dict[str, str] = {}
        """Fix of a type that differs from dropping or keeping."""
        self.checks = checks

    def add(self, problem_type: str, where: str, detail: str) -> None:
        """Add a problem."""
        assert problem_type in PROBLEM_TYPES
        self.entries.append(Problem(problem_type, where, detail))

    def action(self, problem_type: str) -> str:
        """Return `error`, `drop`, `clip` or `keep`."""
        action: str = getattr(self.checks, problem_type)
        return action

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each type that occurs, in the order of `PROBLEM_TYPES`."""
        counts = Counter(problem.type for problem in self.entries)
        return {name: counts[name] for name in PROBLEM_TYPES if counts[name]}

    def refused(self) -> dict[str, int]:
        """Return the counts of the types whose action is `error`."""
        return {name: count for name, count in self.counts().items() if self.action(name) == "error"}

    def of_type(self, problem_type: str) -> list[Problem]:
        """Return the problems of one type, in the order they were added."""
        return [problem for problem in self.entries if problem.type == problem_type]

    def summary(self) -> dict[str, Any]:
        """Return action, count and examples per type, for the dataset statistics."""
        return {
            name: {"action": self.action(name), "count": count, "examples": self._examples(name)}
            for name, count in self.counts().items()
        }

    def lines(self, problem_types: Iterable[str]) -> list[str]:
        """Return one line per type: name, count, action and examples."""
        lines, counts = [], self.counts()
        for name in problem_types:
            others = counts[name] - MAX_EXAMPLES
            more = f"; and {others} more" if others > 0 else ""
            action = ACTION_SUFFIX.get(self.action(name), "")
            lines.append(f"{name}: {counts[name]}{action}: {'; '.join(self._examples(name))}{more}")
        return lines

    def ask_for_folder(self, num_images: int) -> None:
        """Suggest another folder instead of an action if more images are missing than there are."""
        missing = self.of_type("missing_image")
        if len(missing) > max(MAX_EXAMPLES, num_images):
            _, within, folder = missing[0].detail.rpartition(" in ")
            folder = folder if within else missing[0].where.rpartition("/")[0]
            count = f"{len(missing)} of {len(missing) + num_images}"
            hint = f"{count} images are missing: is {folder.strip('/') or '.'} their folder?"
            self.hints["missing_image"] = f"{hint} Set `images` of the dataset"

    def message(self, dataset: str) -> str:
        """Return the error message for a refused dataset: one line for a single type with few problems."""
        names = list(self.refused())
        lines = self.lines(names)
        action = FIXES.get(names[0], f"such as prepare.checks.{names[0]}: drop")
        fix = self.hints.get(names[0]) or f"fix the data, or set an action in params.yaml, {action}"
        if len(lines) == 1 and self.refused()[names[0]] <= MAX_EXAMPLES:
            return f"dataset {dataset}: {lines[0]}; {fix}"
        head = f"dataset {dataset}: {len(lines)} problem type{'s' * (len(lines) > 1)}"
        last = f"{fix}; `detection doctor {dataset}` also decodes the images"
        return "\n".join([head, *(f"  {line}" for line in lines), last])

    def _examples(self, problem_type: str) -> list[str]:
        return [str(problem) for problem in self.of_type(problem_type)[:MAX_EXAMPLES]]


OUTSIDE_TOLERANCE_PX = 1.0
"""Distance by which a box may extend beyond its image: annotations and resized datasets are rounded."""
MIN_SIDE_PX, MAX_ASPECT_RATIO = 1.0, 100.0
Headers = dict[str, "Header"]
"""Header of each image, by its name relative to the dataset folder."""


def check_images(index: Index, headers: Headers, problems: Problems, orientation: Orientation | None = None) -> Index:
    """Remove missing and broken images, replace unknown or invalid sizes by those of the images, mark turned ones.

    Args:
        index: A split.
        headers: Header of each image by name.
        problems: Problems of the dataset, which are added to.
        orientation: Reading of images with an EXIF orientation; None: upright unless their size tells otherwise.
    """
    orientation = orientation or Orientation()
    sizes = index.sizes.copy()
    keep, upright = np.ones(len(index), dtype=np.bool_), np.zeros(len(index), dtype=np.bool_)
    seen: dict[str, int] = {}
    for row, name in enumerate(map(bytes.decode, index.files.tolist())):
        header = headers[name]
        annotated, stored = (int(sizes[row, 0]), int(sizes[row, 1])), (header.height, header.width)
        if (first := seen.setdefault(name, row)) != row:
            ids = " and ".join(index.ids[one].decode() for one in (first, row))
            problems.add("duplicate_id", name, f"is listed twice, with the ids {ids}")
            problems.hints["duplicate_id"] = LISTED_TWICE
            keep[row] = False
        elif header.missing:
            problems.add("missing_image", name, "does not exist")
            keep[row] = False
        elif header.problem:
            problems.add("broken_image", name, header.problem)
            keep[row] = False
        elif annotated != stored or header.orientation != 1:
            upright[row] = orientation.turns(annotated, header)
            sizes[row] = orientation.size(annotated, header)
            keep[row] = _report_size(name, annotated, header, orientation, problems)
    index = replace(index, sizes=sizes, upright=upright if upright.any() else index.upright)
    return index if keep.all() else index.select(np.flatnonzero(keep))


def _report_size(
    name: str, annotated: tuple[int, int], header: "Header", orientation: Orientation, problems: Problems
) -> bool:
    """Report an EXIF orientation and a wrong size; return whether to keep the image."""
    size, keep = orientation.size(annotated, header), True
    if header.orientation != 1:
        effect = "turned upright" if orientation.turns(annotated, header) else "read as stored"
        problems.add("exif_rotation", name, f"orientation {header.orientation}; {effect}")
        keep = problems.action("exif_rotation") == "keep"
    switched = header.orientation != 1 and not orientation.by_size and annotated == size[::-1]
    if annotated not in ((0, 0), size) and not switched:
        detail = f"has {size[1]}x{size[0]} pixels, annotated with {annotated[1]}x{annotated[0]}"
        problems.add("image_size_mismatch", name, detail)
        keep &= problems.action("image_size_mismatch") == "keep"
    return keep


def check_boxes(index: Index, classes: tuple[str, ...], problems: Problems) -> Index:
    """Clip or remove boxes that extend beyond their image; report degenerate and duplicate boxes."""
    owners = index.image_rows()
    keep = np.ones(len(owners), dtype=np.bool_)

    def report(problem_type: str, bad: NDArray[np.bool_], describe: Callable[[int], str]) -> None:
        for box in np.flatnonzero(bad).tolist():
            corners = ", ".join(f"{corner:g}" for corner in index.boxes[box].tolist())
            detail = f"{classes[index.labels[box]]} [{corners}], {describe(box)}"
            problems.add(problem_type, index.files[owners[box]].decode(), detail)
        if problems.action(problem_type) in ("drop", "error"):
            keep[bad] = False

    heights, widths = index.sizes[owners].T
    x1, y1, x2, y2 = index.boxes.T
    outside = (x1 < -OUTSIDE_TOLERANCE_PX) | (y1 < -OUTSIDE_TOLERANCE_PX)
    outside |= (x2 > widths + OUTSIDE_TOLERANCE_PX) | (y2 > heights + OUTSIDE_TOLERANCE_PX)
    report("box_outside_image", outside, lambda box: f"in an image of {widths[box]}x{heights[box]}")
    boxes, areas = index.boxes, index.areas
    if problems.action("box_outside_image") == "clip" and outside.any():
        boxes, areas = boxes.copy(), areas.copy()
        borders = np.stack([widths, heights, widths, heights], axis=1)[outside]
        boxes[outside] = np.clip(boxes[outside], 0, borders)
        areas[outside] = np.minimum(areas[outside], box_ops.areas(boxes[outside]))
        keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    sides = boxes[:, 2:] - boxes[:, :2]
    short, long = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0)
    degenerate = keep & ((short < MIN_SIDE_PX) | (long > MAX_ASPECT_RATIO * short))
    report("degenerate_box", degenerate, lambda box: f"{sides[box, 0]:g} wide and {sides[box, 1]:g} high")
    report("duplicate_object", keep & _duplicates(owners, index), lambda box: "annotated before")
    index = replace(index, boxes=boxes, areas=areas)
    return index if keep.all() else index.keep_boxes(keep)


def _duplicates(owners: NDArray[np.int64], index: Index) -> NDArray[np.bool_]:
    """[T], True if an earlier object of the image has the same class and box."""
    keys = np.column_stack([index.boxes, index.labels, owners])  # [T, 6] float64
    order = np.lexsort(keys.T)  # stable: of equal objects the earliest comes first
    duplicates = np.zeros(len(owners), dtype=np.bool_)
    duplicates[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return duplicates


def check_splits(root: Path, splits: dict[str, Index], headers: Headers, problems: Problems) -> dict[str, Index]:
    """Report images that occur in two splits, byte for byte; `drop` keeps test over val over train.

    Only files with equal size and equal last bytes are read whole.
    """
    candidates: dict[tuple[int, bytes], list[tuple[str, str]]] = {}
    for split in ("test", "val", "train"):
        for name in map(bytes.decode, splits[split].files.tolist()):
            header = headers[name]
            candidates.setdefault((header.length, header.tail), []).append((split, name))
    leaked: dict[str, set[str]] = {split: set() for split in splits}
    for group in candidates.values():
        if len({split for split, _ in group}) == 1:
            continue
        first: dict[bytes, tuple[str, str]] = {}
        for split, name in group:
            content = blake2b((root / name).read_bytes(), digest_size=16).digest()
            other_split, other = first.setdefault(content, (split, name))
            if other_split != split:
                alias = "" if other == name else f" as {other}"
                problems.add("split_leak", name, f"in {split} is also in {other_split}{alias}")
                leaked[split].add(name)
    if problems.action("split_leak") == "keep":
        return splits
    return {split: _without(index, leaked[split]) for split, index in splits.items()}


def _without(index: Index, names: set[str]) -> Index:
    if not names:
        return index
    rows = [row for row, name in enumerate(map(bytes.decode, index.files.tolist())) if name not in names]
    return index.select(np.array(rows, dtype=np.int64))
