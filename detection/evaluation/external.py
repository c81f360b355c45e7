"""Ground truth and detections of any detector, read from COCO or VOC files.

The readers of `data.sources` deliver the ground truth in float64; nothing is rounded. What official tools score
although the format does not allow it is scored alike, with a warning (`Deviations`).
"""

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.data.sources import coco, voc
from detection.data.sources.checks import Problems
from detection.data.sources.corners import out_of_range, shortest_sides
from detection.data.sources.digest import Digest
from detection.data.sources.layout import split_spec
from detection.data.sources.voc_files import VocFiles
from detection.errors import DataError
from detection.evaluation import coco_results
from detection.evaluation.deviations import Deviations
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions
from detection.params.stages import Checks
from detection.text import did_you_mean

log = logging.getLogger(__name__)

COCO_CHECKS = Checks(zero_area="error", unlisted_image="error")
VOC_CHECKS = Checks(zero_area="error", duplicate_id="drop")
"""A list that names an image twice counts it once, as the devkit does."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExternalData:
    """Ground truth and predictions of a split."""

    ground_truth: GroundTruth
    predictions: Predictions
    classes: tuple[str, ...]
    """Class names; label i is `classes[i]`."""
    images: tuple[str, ...]
    """Image ids as written in the files."""
    sizes: NDArray[np.float64] | None
    """[N, 2] heights and widths of the images; None if a file lacks one."""
    files: tuple[str, ...] = ()
    """File names of the images; empty if the ground truth lacks one."""
    miscounted_ids: bool = False
    """Annotation ids are 0 or repeat, so that pycocotools takes matches for misses or mixes up objects."""

    def overlaps(self) -> Overlaps:
        """Match ground truth and predictions by image and class, and compute their IoU."""
        return Overlaps.of(self.ground_truth, self.predictions, len(self.classes))


def read_coco(
    ground_truth: Path, detections: Path, *, skip_unknown: bool = False, strict: bool = False
) -> ExternalData:
    """Read an instances file and a results file.

    Images and classes are numbered in the order of their ids, as in pycocotools. `ignore` is not used:
    pycocotools sets it from `iscrowd`.

    Args:
        ground_truth: Instances JSON; polygons are not used.
        detections: List of `{image_id, category_id, bbox, score}`; boxes are `x, y, width, height`.
        skip_unknown: Ignore annotations and detections of images and categories that the ground truth does not list.
        strict: Refuse what official tools accept although the format does not allow it.

    Raises:
        DataError: A file is missing or invalid; names file and entry.
    """
    checks = replace(COCO_CHECKS, unlisted_image="drop", unknown_class="drop") if skip_unknown else COCO_CHECKS
    problems, deviations = Problems(checks), Deviations(strict)
    instances = coco.load(ground_truth, str(ground_truth), problems)
    for key, entries in (("images", instances.images), ("categories", instances.categories)):
        if not entries and not problems.entries:
            raise DataError(f"{ground_truth}: it lists no {key}; use the instances file of the split")
    miscounted = _check_ids(ground_truth, instances, deviations)
    listed = (instances.image_rows >= 0) & (instances.category_rows >= 0)
    if skip_unknown:
        deviations.add(ground_truth, int(np.sum(~listed)), "annotations of unlisted images or categories, ignored")
    _refuse_problems(problems, None)
    instances_rows = np.flatnonzero(listed)
    negative = shortest_sides(instances.bbox) < 0
    deviations.add(ground_truth, int(negative.sum()), "objects with negative width or height, never detected")
    is_float = instances.image_id.dtype.kind == "f" or instances.category_id.dtype.kind == "f"
    deviations.add(ground_truth, len(listed) * is_float, "annotations, some with ids written as 1.0")
    image_ids = np.sort(instances.ids)
    categories = sorted(instances.categories, key=lambda category: category.id)
    category_ids = np.array([category.id for category in categories], dtype=np.int64)
    image_of = {image.id: image for image in instances.images}
    images = [image_of[image_id] for image_id in image_ids.tolist()]
    names = tuple(image.file_name for image in images)
    truth = GroundTruth(
        images=coco.find_rows(instances.image_id, image_ids),
        labels=coco.find_rows(instances.category_id, category_ids),
        boxes=instances.bbox,
        areas=np.where(np.isnan(instances.area), instances.bbox[:, 2] * instances.bbox[:, 3], instances.area),
        ignored=instances.iscrowd,
    ).take(instances_rows)
    predictions = _coco_predictions(detections, image_ids, category_ids, skip_unknown, deviations)
    deviations.warn()
    return ExternalData(
        ground_truth=truth,
        predictions=predictions,
        classes=tuple(category.name for category in categories),
        images=tuple(map(str, image_ids.tolist())),
        sizes=_known_sizes([(image.height, image.width) for image in images]),
        files=names if all(names) else (),
        miscounted_ids=miscounted,
    )


def _check_ids(path: Path, instances: coco.Instances, deviations: Deviations) -> bool:
    """Count annotation ids that pycocotools miscounts; return whether there are some.

    Raises:
        DataError: It is a file of LVIS, whose protocol is another one.
    """
    if any(image.neg_category_ids is not None for image in instances.images):
        raise DataError(
            f"{path}: it has neg_category_ids, as LVIS: classes are annotated on some images only, which COCO's "
            "protocol would count as false positives; score it with lvis-api"
        )
    ids = [number for number in instances.annotation_ids if number is not None]
    zeros, repeated = ids.count(0) + ids.count("0"), len(ids) - len(set(ids))
    pitfall = "which pycocotools itself miscounts: renumber from 1"
    deviations.add(path, zeros, f"annotation with the id 0, {pitfall}")
    deviations.add(path, repeated, f"repeated annotation ids, {pitfall}")
    return zeros + repeated > 0


def _coco_predictions(
    path: Path,
    image_ids: NDArray[np.int64],
    category_ids: NDArray[np.int64],
    skip_unknown: bool,
    deviations: Deviations,
) -> Predictions:
    results = coco_results.read(path, deviations)
    predictions = Predictions(
        images=coco.find_rows(results.image_id, image_ids),
        labels=coco.find_rows(results.category_id, category_ids),
        boxes=results.bbox,
        scores=results.score,
        mask_areas=results.mask_areas,
    )
    is_float = results.image_id.dtype.kind == "f" or results.category_id.dtype.kind == "f"
    deviations.add(path, len(results.score) * is_float, "results, some with ids written as 1.0")

    def unknown(row: int) -> str:
        key = "image_id" if predictions.images[row] < 0 else "category_id"
        return f"{key} {getattr(results, key)[row].item()} is not in the ground truth"

    inverted = shortest_sides(predictions.boxes) < 0
    deviations.add(path, int(inverted.sum()), "boxes with negative width or height, which match no object")
    return _checked(predictions, skip_unknown, path, "$[{}]".format, unknown)


def read_voc(
    devkit: Path, year: str, image_set: str, detections: Path, *, skip_unknown: bool = False, strict: bool = False
) -> ExternalData:
    """Read the annotations of an image set, and `comp4_det_<image_set>_<class>.txt` of every class.

    The classes are those of the annotated objects. A class without detections has an empty file.

    Args:
        devkit: The folder `VOCdevkit`.
        year: Year in the name of its folder `VOC<year>`.
        image_set: Name of a list in `ImageSets/Main`.
        detections: Folder of the detection files; a line is `image score xmin ymin xmax ymax`.
        skip_unknown: Ignore detections of images outside the image set, files of classes without objects,
            and classes without a file.
        strict: Refuse what the devkit accepts although the format does not allow it.

    Raises:
        DataError: A file is missing or invalid; names file and line.
    """
    folder, name = split_spec(devkit, f"VOC{year}/{image_set}")
    problems, digest, files = Problems(VOC_CHECKS), Digest(), VocFiles(folder)
    annotations = voc.VocAnnotations(digest=digest, problems=problems, one_pixel_boxes=True)
    for image_id in voc.listed_ids(folder, str(name), digest, problems, files.parse_line):
        annotations.read(devkit, files.annotation(image_id), image_id)
    _refuse_problems(problems, devkit)
    if not annotations.names:
        raise DataError(f"{folder.path}: no image of the image set {image_set!r} has an object; use another one")
    prefix = f"comp4_det_{image_set}_"
    classes = _classes(detections, prefix, sorted(set(annotations.names)), skip_unknown)
    row_of, deviations = {image_id: row for row, image_id in enumerate(annotations.ids)}, Deviations(strict)
    parts = [
        _voc_predictions(detections / f"{prefix}{name}.txt", label, row_of, skip_unknown, deviations)
        for label, name in enumerate(classes)
    ]
    deviations.warn()
    labels = annotations.labels(classes)
    boxes = _xywh(np.array(annotations.boxes, dtype=np.float64).reshape(-1, 4))
    truth = GroundTruth(
        images=np.repeat(np.arange(len(annotations.ids)), annotations.counts),
        labels=labels,
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        ignored=np.array(annotations.difficult, dtype=np.bool_),
    )
    return ExternalData(
        ground_truth=truth.take(np.flatnonzero(labels >= 0)),
        predictions=Predictions(
            **{
                field.name: np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(Predictions)
                if field.name != "mask_areas"
            }
        ),
        classes=tuple(classes),
        images=tuple(annotations.ids),
        sizes=_known_sizes(annotations.sizes),
        files=tuple(f"{image_id}.jpg" for image_id in annotations.ids),
    )


def _classes(folder: Path, prefix: str, annotated: list[str], skip_unknown: bool) -> list[str]:
    """Return the classes to score: all annotated ones, or with `skip_unknown` those that have a file."""
    available = {path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.txt")}
    if not available:
        raise DataError(f"{folder} has no {prefix}<class>.txt; use the folder of the detections")
    missing = [name for name in annotated if name not in available]
    unknown = sorted(available - set(annotated))
    if skip_unknown and len(missing) < len(annotated):
        if missing:
            log.warning("%s: ignored classes without a file: %s", folder, ", ".join(missing))
        if unknown:
            log.warning("%s: ignored files of classes without objects: %s", folder, ", ".join(unknown))
        return [name for name in annotated if name in available]
    if unknown:
        path = folder / f"{prefix}{unknown[0]}.txt"
        raise DataError(f"{path}: no object has the class {unknown[0]!r}; {did_you_mean(unknown[0], annotated)}")
    if missing:
        raise DataError(
            f"{folder / (prefix + missing[0])}.txt is missing; create it (an empty file for no detections), "
            f"or score the {len(annotated) - len(missing)} classes that have a file with --skip-unknown"
        )
    return annotated


def _voc_predictions(
    path: Path, label: int, row_of: dict[str, int], skip_unknown: bool, deviations: Deviations
) -> Predictions:
    try:
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read the detections: {error.strerror}") from None
    numbers, names, values = [], [], array("d")
    for number, line in enumerate(lines, 1):
        if words := line.strip().rsplit(None, 5):  # the name of an image may have spaces
            try:
                name, *texts = words
                score, xmin, ymin, xmax, ymax = map(float, texts)
            except ValueError:
                expected = "`image score xmin ymin xmax ymax`"
                raise DataError(f"{path}: line {number}: expected {expected}; fix the line") from None
            values.extend((score, xmin - 1, ymin - 1, xmax, ymax))
            numbers.append(number)
            names.append(name)
    table = np.array(values).reshape(-1, 5)
    predictions = Predictions(
        images=np.array([row_of.get(name, -1) for name in names], dtype=np.int64),
        labels=np.full(len(names), label),
        boxes=_xywh(table[:, 1:]),
        scores=table[:, 0],
    )
    inverted = shortest_sides(predictions.boxes) <= 0
    first = f"line {numbers[int(np.argmax(inverted))]}" if inverted.any() else ""
    deviations.add(path, int(inverted.sum()), "boxes without area, false positives", first)
    return _checked(
        predictions,
        skip_unknown,
        path,
        lambda row: f"line {numbers[row]}",
        lambda row: f"image {names[row]!r} is not in the image set",
    )


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert half-open corners [N, 4] to `x, y, width, height`."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _known_sizes(sizes: Sequence[tuple[float | None, float | None]]) -> NDArray[np.float64] | None:
    """Return [N, 2] heights and widths; None if one is unknown."""
    numbers = np.array(sizes, dtype=np.float64).reshape(-1, 2)  # None becomes NaN
    return numbers if np.all(numbers > 0) else None


def _checked(
    predictions: Predictions,
    skip_unknown: bool,
    path: Path,
    where: Callable[[int], str],
    unknown_detail: Callable[[int], str],
) -> Predictions:
    """Refuse invalid predictions; refuse or drop those of unknown images and classes."""
    boxes = predictions.boxes
    unknown = (predictions.images < 0) | (predictions.labels < 0)
    checks: list[tuple[NDArray[np.bool_], Callable[[int], str]]] = [
        (~np.isfinite(predictions.scores), lambda row: "the score is not a finite number"),
        (out_of_range(boxes), lambda row: f"{boxes[row].tolist()} is not a box in pixels"),
    ]
    if not skip_unknown:
        checks.append((unknown, lambda row: unknown_detail(row) + "; ignore it with --skip-unknown"))
    for bad, describe in checks:
        if bad.any():
            row, count = int(np.argmax(bad)), int(bad.sum())
            more = f" ({count - 1} more)" if count > 1 else ""
            raise DataError(f"{path}: {where(row)}: {describe(row)}{more}")
    if not unknown.any():
        return predictions
    log.warning("%s: ignored %d detections of unknown images or classes", path, unknown.sum())
    return predictions.take(np.flatnonzero(~unknown))


def _refuse_problems(problems: Problems, root: Path | None) -> None:
    """Raise for the first problem whose action is `error`."""
    refused = [problem for problem in problems.entries if problems.action(problem.type) == "error"]
    if refused:
        where = root / refused[0].where if root else refused[0].where
        more = f" ({len(refused) - 1} more)" if len(refused) > 1 else ""
        raise DataError(f"{where}: {refused[0].detail} ({refused[0].type}){more}; fix the file")
