"""Page and tables of detections that were read from files, as those of an experiment's evaluation."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.loading.index import Index
from detection.errors import DataError, DetectionError
from detection.evaluation import slices
from detection.evaluation.analysis.tables import Tables, encode, write_tables
from detection.evaluation.evaluate import Evaluation, evaluate_overlaps
from detection.evaluation.external import ExternalData
from detection.evaluation.protocol.matching import CocoLimits
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from detection.report.images.gallery import Album, build_album

log = logging.getLogger(__name__)
IMAGES_PER_GALLERY = 12
DEFAULT_SCORE = 0.5
"""Initial score threshold of the page without a best F1."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files of ground truth, detections and images."""

    detections: Path
    ground_truth: Path
    images: Path | None
    """Folder of the images; None: no galleries."""
    required: bool = False
    """Refuse images that cannot be read, instead of a page without galleries."""


def write(
    out: Path,
    data: ExternalData,
    overlaps: Overlaps,
    content: Mapping[str, Any],
    *,
    limits: CocoLimits,
    rules: Mapping[str, Any] | None,
    source: Source,
) -> None:
    """Write the page to `out`, if it ends in `.html`, else tables and `index.html` to this folder.

    Args:
        out: HTML file or folder.
        data: Ground truth and predictions.
        overlaps: Their overlaps.
        content: Printed scores; its `slices` become a table.
        limits: COCO's limits.
        rules: Arguments of `voc_metrics.match`; None: those of VOC.
        source: Files and images.

    Raises:
        DetectionError: The files cannot be written, or required images not be read.
    """
    evaluation = evaluate_overlaps(
        overlaps, data.classes, data.images, data.sizes, limits=limits, voc_rules=rules or {}
    )
    tables: Tables = {**evaluation.tables, "scores.json": dict(content)}
    if "slices" in content:
        import pandas as pd

        tables = {**tables, "slices.csv": pd.DataFrame(slices.rows(content["slices"]))}
    files = encode(tables)
    is_page = out.suffix.lower() in (".html", ".htm")
    try:
        if not is_page:
            write_tables(out, files)
        with tempfile.TemporaryDirectory() as folder:
            page = _draw(Path(folder), files, evaluation, data, content, source)
            (out.parent if is_page else out).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, out if is_page else out / "index.html")
    except OSError as error:
        raise DetectionError(f"--report {out} cannot be written: {error.strerror}") from None


def _draw(
    reports: Path,
    tables: Tables,
    evaluation: Evaluation,
    data: ExternalData,
    content: Mapping[str, Any],
    source: Source,
) -> Path:
    """Page of a temporary folder with the layout of `reports/`."""
    from detection.report.charts.experiment_charts import draw_charts
    from detection.report.page.advice import advise
    from detection.report.page.html import write_page

    scored = {
        "detections": source.detections.name,
        "ground_truth": source.ground_truth.name,
        "protocol": content["protocol"],
        "images": len(data.images),
    }
    write_tables(reports / "evaluation/tables", tables)
    write_tables(reports / "evaluation", {"metrics.json": evaluation.stats, "scored.json": scored})
    charts = draw_charts(reports, None)
    album = _album(reports, data, evaluation.tables, source)
    return write_page(reports / "index.html", reports, charts, album, advise(reports))


def _album(reports: Path, data: ExternalData, tables: Tables, source: Source) -> Album | None:
    if source.images is None or not (source.required or source.images.is_dir()):
        return None
    analysis = tables["analysis.json"]
    assert isinstance(analysis, dict)
    score = analysis["threshold"]["score"]
    score = DEFAULT_SCORE if score is None or np.isnan(score) else score
    try:
        index, detections = _packed(data)
        return build_album(reports, source.images, data.classes, index, detections, score, IMAGES_PER_GALLERY)
    except DataError as error:
        if source.required:
            raise
        log.warning("no images on the page: %s", error)
        return None


def _packed(data: ExternalData) -> tuple[Index, SplitDetections]:
    """Index and detections in float32, to draw them.

    Raises:
        DataError: The ground truth names no files or no sizes.
    """
    if not data.files or data.sizes is None:
        missing = "files" if not data.files else "width and height of all images"
        raise DataError(f"--images needs {missing} in the ground truth")
    truth, found = data.ground_truth, data.predictions
    truth = truth.take(np.argsort(truth.images, kind="stable"))
    corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    counts = np.bincount(truth.images, minlength=len(data.images))
    index = Index(
        files=np.array([name.encode() for name in data.files], dtype=np.bytes_),
        ids=np.array([name.encode() for name in data.images], dtype=np.bytes_),
        sizes=data.sizes.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=corners.astype(np.float32),
        labels=truth.labels,
        difficult=np.zeros(len(truth.labels), np.bool_),
        crowd=truth.ignored,
        areas=truth.areas.astype(np.float32),
    )
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
    return index, SplitDetections.pack(found.images, boxes, found.scores, found.labels)
