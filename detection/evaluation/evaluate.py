"""Complete evaluation of a split: one pass over the overlaps, all scores and tables from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.evaluation.analysis import bootstrap
from detection.evaluation.analysis.resampling import BootstrapSample
from detection.evaluation.analysis.tables import Tables, build_tables, per_class_table, pr_curve_table
from detection.evaluation.protocol import coco_metrics, oracle, voc_metrics
from detection.evaluation.protocol.matching import COCO_LIMITS, CocoLimits, match
from detection.evaluation.protocol.overlaps import Overlaps, image_order
from detection.evaluation.protocol.results import SplitDetections


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores and tables."""

    stats: dict[str, float]
    """The 12 COCO numbers and 2 VOC numbers; NaN without ground truth."""
    ap: dict[str, float]
    """COCO AP per class."""
    tables: Tables
    """By file name: those of `analysis.tables`, and `intervals.json` (see `BootstrapResult.to_json`),
    `per_class.csv` and `pr_curves.csv`."""

    def metrics(self) -> dict[str, float]:
        """Scores as metrics of an MLflow run: `test/AP`, and `test/AP/person` per class."""
        by_class = {f"AP/{name}": value for name, value in self.ap.items()}
        return {f"test/{name}": float(value) for name, value in {**self.stats, **by_class}.items()}


def evaluate(
    index: Index,
    results: SplitDetections,
    classes: Sequence[str],
    *,
    verify: bool = False,
    rounds: int = bootstrap.DEFAULT_ROUNDS,
) -> Evaluation:
    """Score by the COCO and VOC protocols, with error analysis and bootstrap intervals.

    Args:
        index: The ground truth.
        results: Detections on its images.
        classes: Class names in label order.
        verify: Run pycocotools as well and compare.
        rounds: Bootstrap rounds.

    Raises:
        VerificationError: A COCO number differs from that of pycocotools.
    """
    overlaps = Overlaps.of_index(index, results, len(classes))
    order = image_order(index)
    ids = [name.decode() for name in index.ids[order]]
    return evaluate_overlaps(overlaps, classes, ids, index.sizes[order], verify=verify, rounds=rounds)


def evaluate_overlaps(
    overlaps: Overlaps,
    classes: Sequence[str],
    ids: Sequence[str],
    sizes: NDArray[np.number] | None,
    *,
    limits: CocoLimits = COCO_LIMITS,
    voc_rules: Mapping[str, Any] = MappingProxyType({}),
    verify: bool = False,
    rounds: int = bootstrap.DEFAULT_ROUNDS,
) -> Evaluation:
    """Score ground truth and detections that are compared already.

    Args:
        overlaps: Ground truth and detections.
        classes: Class names in label order.
        ids: [N] image ids, in the order of `overlaps`.
        sizes: [N, 2] image heights and widths; None omits recall by truncation.
        limits: COCO's limits.
        voc_rules: Arguments of `voc_metrics.match`.
        verify: Run pycocotools as well and compare.
        rounds: Bootstrap rounds.

    Raises:
        VerificationError: A COCO number differs from that of pycocotools.
    """
    matches, voc_matches = match(overlaps, limits), voc_metrics.match(overlaps, **voc_rules)
    by_coco = coco_metrics.score_matches(overlaps, matches, for_stats=not verify)
    by_voc = voc_metrics.score_matches(overlaps, voc_matches)
    if verify:
        oracle.verify(overlaps, by_coco, limits)
    truth = overlaps.ground_truth
    spread = bootstrap.intervals(BootstrapSample.of(overlaps, matches, num_images=len(ids)), rounds)
    voc_sample = BootstrapSample.of_voc(overlaps, voc_matches, num_images=len(ids))
    spread = spread.with_scores_of(bootstrap.voc_intervals(voc_sample, rounds))
    tables = {
        **build_tables(overlaps, matches, classes, ids, sizes),
        "intervals.json": spread.to_json(classes),
        "per_class.csv": per_class_table(classes, by_coco, by_voc, truth.labels[~truth.ignored]),
        "pr_curves.csv": pr_curve_table(classes, by_coco),
    }
    ap = dict(zip(classes, by_coco.per_class["AP"].tolist(), strict=True))
    return Evaluation(stats={**by_coco.stats, **by_voc.stats}, ap=ap, tables=tables)
