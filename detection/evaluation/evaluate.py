"""Complete evaluation of a split: one pass over the overlaps, all scores and tables from it."""

from collections.abc import Sequence
from dataclasses import dataclass

from detection.data.loading.index import Index
from detection.evaluation.analysis import bootstrap
from detection.evaluation.analysis.resampling import BootstrapSample
from detection.evaluation.analysis.tables import Tables, build_tables, per_class_table, pr_curve_table
from detection.evaluation.protocol import coco_metrics, oracle, voc_metrics
from detection.evaluation.protocol.matching import match
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
    matches = match(overlaps)
    voc_matches = voc_metrics.match(overlaps)
    by_coco = coco_metrics.score_matches(overlaps, matches)
    by_voc = voc_metrics.score_matches(overlaps, voc_matches)
    if verify:
        oracle.verify(overlaps, by_coco)
    order = image_order(index)
    ids = [name.decode() for name in index.ids[order]]
    spread = bootstrap.intervals(BootstrapSample.of(overlaps, matches, num_images=len(index)), rounds)
    voc_sample = BootstrapSample.of_voc(overlaps, voc_matches, num_images=len(index))
    spread = spread.with_scores_of(bootstrap.voc_intervals(voc_sample, rounds))
    stats = {**by_coco.stats, **by_voc.stats}
    tables = {
        **build_tables(overlaps, matches, classes, ids, index.sizes[order]),
        "intervals.json": spread.to_json(classes),
        "per_class.csv": per_class_table(classes, by_coco, by_voc, index),
        "pr_curves.csv": pr_curve_table(classes, by_coco),
    }
    ap = dict(zip(classes, by_coco.per_class["AP"].tolist(), strict=True))
    return Evaluation(stats=stats, ap=ap, tables=tables)
