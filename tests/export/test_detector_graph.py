"""The graph without data-dependent control flow detects what each detector detects."""

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from detection.data.loading.batch import collate
from detection.data.loading.loader import eval_sample
from detection.export.agreement import compare
from detection.export.detector_graph import DetectorGraph
from detection.export.operators import plain_operators, stable_topk
from detection.models.build import LoadedDetector
from detection.models.detector import BackboneDetector, Detections

MODELS = [
    "fasterrcnn_resnet18",
    "retinanet_resnet18",
    "fasterrcnn_v2",
    "fasterrcnn_mobilenet_320",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_vgg16",
    "retinanet_v2",
    "retinanet_257",
    "fcos",
    "ssd300",
    "ssdlite320",
]


@pytest.mark.parametrize("model", MODELS)
def test_the_graph_equals_the_detector(
    model: str, random_detector: Callable[..., LoadedDetector], images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = random_detector(model)
    graph = DetectorGraph(loaded.detector).eval()
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    batch = collate([eval_sample(image, *none, i, loaded.recipe) for i, image in enumerate(images[:2])], loaded.recipe)
    with torch.inference_mode():
        features = cast(BackboneDetector, loaded.detector).features(batch.images)
        monkeypatch.setattr(loaded.detector, "features", lambda images: list(features))  # computed once
        expected = loaded.detector.detect(batch.images, batch.sizes)
        nodes = graph(batch.images, batch.sizes.resized, batch.sizes.original)
        with plain_operators():
            plain = graph(batch.images, batch.sizes.resized, batch.sizes.original)
    assert sum(len(one.scores) for one in expected) > 0
    for boxes, scores, labels, counts in (nodes, plain):
        for i, ours in enumerate(expected):
            n = int(counts[i])
            found = compare(ours, Detections(boxes[i, :n], scores[i, :n], labels[i, :n]))
            assert not found.problem
            assert found.matched > 10 * found.tied
            assert found.box < 1e-3
            assert found.score < 1e-5
            assert not boxes[i, n:].any()


def test_the_first_of_equal_scores_come_first() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.2] * 50)[None]
    with plain_operators():
        values, columns = stable_topk(scores, 60)
    assert columns[0, :50].tolist() == list(range(1, 200, 4))
    assert columns[0, 50:].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert torch.equal(values[0], scores[0, columns[0]])


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    values = torch.tensor([row[:5] for row in rows]).reshape(-1, 5)
    return Detections(values[:, :4], values[:, 4], torch.tensor([row[5] for row in rows], dtype=torch.int64))


ONE, OTHER = (10.0, 10.0, 30.0, 40.0, 0.9, 1), (50.0, 5.0, 80.0, 45.0, 0.6, 0)


def test_equal_detections_agree_in_any_order() -> None:
    moved = (10.01, 10.0, 30.0, 40.0, 0.90005, 1)
    found = compare(detections(ONE, OTHER), detections(OTHER, moved))
    assert (found.problem, found.matched, found.tied) == ("", 2, 0)
    assert found.box == pytest.approx(0.01, abs=1e-4)
    assert found.score == pytest.approx(5e-5, abs=1e-6)


def test_detections_of_the_lowest_score_may_be_others() -> None:
    tied = (50.0, 5.0, 80.0, 45.0, 0.60005, 2)
    found = compare(detections(ONE, OTHER), detections(ONE, tied))
    assert (found.problem, found.matched, found.tied) == ("", 1, 1)


@pytest.mark.parametrize(
    "theirs",
    [
        detections(ONE),
        detections((10.1, *ONE[1:]), OTHER),
        detections((*ONE[:4], 0.899, 1), OTHER),
        detections((*ONE[:5], 2), OTHER),
        detections(ONE, OTHER, (0.0, 0.0, 9.0, 9.0, 0.7, 1)),
        detections(),
    ],
)
def test_other_detections_are_a_problem(theirs: Detections) -> None:
    assert compare(detections(ONE, OTHER), theirs).problem
