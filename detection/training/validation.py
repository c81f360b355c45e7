"""Scoring `val` during training, and pictures of what is found there."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from detection import distributed
from detection.data.index import Index
from detection.data.loading.image_io import decode
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from detection.inference import run_detector
from detection.models.detector import Detector
from detection.params.recipe import Recipe
from detection.report.images.boxes_on_image import draw_boxes

SHOWN_SCORE = 0.3  # of sample predictions; a young detector is rarely surer


@dataclass(frozen=True, slots=True)
class Validator:
    """Scores a detector on `val`."""

    index: Index
    """The split; may be empty."""
    root: Path
    """Folder that its files are relative to."""
    classes: tuple[str, ...]
    """Class names."""
    recipe: Recipe
    """Picture size."""
    precision: str
    """Of the forward pass."""
    batch_size: int = 16
    """Pictures per forward pass."""

    def score(self, detector: Detector) -> tuple[dict[str, float], SplitDetections]:
        """COCO's 12 numbers and VOC's two APs, and the detections they were computed from.

        Each rank detects on its share of the pictures; all score the whole.
        """
        mine = np.arange(distributed.rank(), len(self.index), distributed.world_size())
        found = run_detector(
            detector,
            self.index.select(mine),
            self.root,
            self.recipe,
            batch_size=self.batch_size,
            device=next(detector.parameters()).device.type,
            precision=self.precision,
        )
        results = SplitDetections.concat(distributed.gather(replace(found, images=mine[found.images])))
        overlaps = Overlaps.of_index(self.index, results, len(self.classes))
        by_coco = coco_metrics.score_matches(overlaps, match(overlaps))
        return {**by_coco.stats, **voc_metrics.score_overlaps(overlaps).stats}, results

    def draw(self, results: SplitDetections, count: int, path: Path) -> Path:
        """Write the first pictures of the split, ground truth on the left, detections on the right."""
        rows = []
        for i in range(min(count, len(self.index))):
            record = self.index[i]
            picture = decode(self.root / record.file, (record.height, record.width))
            truth = draw_boxes(picture, record.boxes, record.labels, self.classes)
            mine = (results.images == i) & (results.scores >= SHOWN_SCORE)
            found = draw_boxes(
                picture, results.boxes[mine], results.labels[mine], self.classes, results.scores[mine]
            )
            rows.append(np.concatenate([np.asarray(truth), np.asarray(found)], axis=1))
        width = max(row.shape[1] for row in rows)
        sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path)
        return path
