"""All scores and tables of one pass."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from detection.data.loading.index import Index
from detection.errors import VerificationError
from detection.evaluation.evaluate import evaluate
from detection.evaluation.protocol.coco_metrics import CocoScore, score_matches
from detection.evaluation.protocol.matching import Matches
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections

BOXES = [[0, 0, 50, 50], [100, 0, 150, 50]]


def test_scores_and_files(make_index: Callable[..., Index]) -> None:
    index = make_index((BOXES, [0, 1]))
    evaluation = evaluate(
        index, SplitDetections.of_image(0, BOXES[:1], [0.9], [0]), ["cat", "dog"], verify=True, rounds=5
    )
    metrics = evaluation.metrics()
    assert (metrics["test/AP"], metrics["test/AP/cat"], metrics["test/AP/dog"]) == pytest.approx((0.5, 1, 0))
    assert metrics["test/voc_ap50_area"] == pytest.approx(0.5)
    assert {"analysis.json", "intervals.json", "per_class.csv", "pr_curves.csv"} <= set(evaluation.tables)


def test_a_difference_from_pycocotools_stops(make_index: Callable[..., Index], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(overlaps: Overlaps, matches: Matches, *, for_stats: bool) -> CocoScore:
        score = score_matches(overlaps, matches, for_stats=for_stats)
        return replace(score, stats=score.stats | {"AP50": 0.25})

    monkeypatch.setattr("detection.evaluation.protocol.coco_metrics.score_matches", wrong)
    index = make_index((BOXES, [0, 1]))
    with pytest.raises(VerificationError, match=r"AP50 is 0\.25.*pycocotools"):
        evaluate(index, SplitDetections.of_image(0, BOXES, [0.9, 0.8], [0, 1]), ["cat", "dog"], verify=True, rounds=5)
