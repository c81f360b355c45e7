"""Everything that is said about a detector on a split: one sparse pass, and all scores and tables from it."""

from collections.abc import Sequence
from dataclasses import dataclass

from detection.data.index import Index
from detection.evaluation import analysis, bootstrap, coco, curves, official, per_class, voc
from detection.evaluation.analysis import Tables
from detection.evaluation.matching import match
from detection.evaluation.overlaps import Overlaps, picture_order
from detection.evaluation.resampling import Sample
from detection.evaluation.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Scores and tables."""

    stats: dict[str, float]
    """COCO's twelve numbers and VOC's two; NaN where there is nothing to find."""
    ap: dict[str, float]
    """COCO's AP of each class."""
    tables: Tables
    """By file name: those of `analysis.tables`, and `metrics.json` (the stats), `intervals.json` (see
    `bootstrap.Spread.to_json`), `per_class.csv` and `pr_curves.csv`."""

    def row(self) -> dict[str, float]:
        """The scores as an experiment's row names them: `test/AP`, and `test/AP/person` of each class."""
        by_class = {f"AP/{name}": value for name, value in self.ap.items()}
        return {f"test/{name}": float(value) for name, value in {**self.stats, **by_class}.items()}


def assess(
    index: Index,
    results: Results,
    classes: Sequence[str],
    *,
    verify: bool = False,
    rounds: int = bootstrap.ROUNDS,
) -> Assessment:
    """Score by COCO's and VOC's protocols, and say why the detector fails and how far chance goes.

    Args:
        index: The ground truth.
        results: Detections on its pictures.
        classes: Names, in label order.
        verify: Run pycocotools too.
        rounds: Of the bootstrap.

    Raises:
        VerificationError: pycocotools says another number.
    """
    overlaps = Overlaps.of_index(index, results, len(classes))
    matches = match(overlaps)
    by_coco, by_voc = coco.score_matches(overlaps, matches), voc.score_overlaps(overlaps)
    if verify:
        official.verify(overlaps, by_coco)
    order = picture_order(index)
    ids = [name.decode() for name in index.ids[order]]
    spread = bootstrap.intervals(Sample.of(overlaps, matches, pictures=len(index)), rounds=rounds)
    stats = {**by_coco.stats, **by_voc.stats}
    tables = {
        **analysis.tables(overlaps, matches, classes, ids, index.sizes[order]),
        "metrics.json": dict(stats),
        "intervals.json": spread.to_json(classes),
        "per_class.csv": per_class.table(index, classes, by_coco, by_voc),
        "pr_curves.csv": curves.table(by_coco, classes),
    }
    ap = dict(zip(classes, by_coco.per_class["AP"].tolist(), strict=True))
    return Assessment(stats=stats, ap=ap, tables=tables)
