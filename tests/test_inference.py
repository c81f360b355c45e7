from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detection import inference, predictor, profiling
from detection.data.loading.batch import ImageSizes
from detection.data.loading.index import Index, Record, pack
from detection.device import exact_float32
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.inference import run_detector
from detection.models.build import LoadedDetector, build_detector, load_detector, save_detector
from detection.models.detector import Detections
from detection.params import load
from detection.params.stages import Evaluate, Tiles
from detection.predictor import Predictor
from detection.training.validation import Validator


def noise_images(folder: Path, sizes: list[tuple[int, int]]) -> Index:
    """One PNG of noise per size, without objects."""
    rng, records = np.random.default_rng(0), []
    boxes, areas = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    labels, flags = np.zeros(0, int), np.zeros(0, bool)
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        records.append(Record(f"{i}.png", str(i), *size, boxes, labels, flags, flags, areas))
    return pack(records)


@pytest.mark.parametrize("size", [(60, 90), (75, 75)])
@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "retinanet_resnet18"])
def test_a_single_image_gets_the_same_detections_as_in_a_split(
    tmp_path: Path, model: str, size: tuple[int, int]
) -> None:
    """Sides that are not multiples of 32: both ways must pad them, or the anchors are shifted."""
    index = noise_images(tmp_path, [size])
    recipe = replace(load(model=model).recipe, image_size=100, max_size=200, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    in_split = run_detector(detector, index, tmp_path, recipe, batch_size=4, device="cpu")
    loaded = LoadedDetector(detector, recipe, ("a", "b", "c"), model)
    (single,) = Predictor(loaded).predict(tmp_path / "0.png", score_threshold=0.0)
    assert len(in_split.boxes) > 20
    np.testing.assert_allclose(single.boxes, in_split.boxes, atol=1e-3)
    np.testing.assert_allclose(single.scores, in_split.scores, atol=1e-6)


def test_a_single_image_in_windows_gets_the_same_detections_as_in_a_split(tmp_path: Path) -> None:
    """In both ways, and in validation, the windows are merged by one rule."""
    index = noise_images(tmp_path, [(150, 170), (60, 50)])
    recipe = replace(load(model="retinanet_resnet18").recipe, image_size=64, max_size=64, score_threshold=0.0)
    torch.manual_seed(0)
    detector, tiles = build_detector(recipe, 3, None).eval(), Tiles(size=80, overlap=0.25)
    in_split = run_detector(detector, index, tmp_path, recipe, batch_size=4, device="cpu", tiles=tiles)
    loaded = LoadedDetector(detector, recipe, ("a", "b", "c"), "retinanet_resnet18", tiles)
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    singles = [*Predictor(loaded).predict(files, score_threshold=0.0, batch_size=5)]
    validator = Validator(index, tmp_path, loaded.classes, recipe, "fp32", batch_size=3, tiles=tiles)
    _, validated = validator.validate(detector)
    assert len(in_split) > 20
    assert in_split.boxes[:, 2].max() > 120  # in pixels of the image
    for row, single in enumerate(singles):
        for found in (in_split, validated):
            mine = found.images == row
            np.testing.assert_allclose(single.scores, found.scores[mine], atol=1e-5)
            distances = np.abs(single.boxes[:, None] - found.boxes[mine][None]).max(axis=2)
            assert distances.min(axis=1).max() < 1e-2  # in any order, since scores are nearly tied


def test_tiles_are_part_of_the_file_of_a_detector(tmp_path: Path) -> None:
    recipe = load(model="retinanet_resnet18").recipe
    state = build_detector(recipe, 2, None).state_dict()
    for tiles in (None, Tiles(size=80, overlap=0.25)):
        save_detector(tmp_path / "detector.pt", state, recipe, ("a", "b"), "retinanet_resnet18", tiles=tiles)
        assert load_detector(tmp_path / "detector.pt").tiles == tiles


def test_a_batch_that_does_not_fit_the_gpu_is_halved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = noise_images(tmp_path, [(64, 96)] * 7)
    recipe = replace(load(model="retinanet_resnet18").recipe, image_size=64, max_size=96, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    detect, sizes = detector.detect, list[int]()

    def run(batch_size: int) -> SplitDetections:
        sizes.clear()
        return run_detector(detector, index, tmp_path, recipe, batch_size=batch_size, device="cpu")

    def with_little_memory(images: Tensor, of: ImageSizes) -> list[Detections]:
        sizes.append(len(images))
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return detect(images, of)

    expected, limit = run(4), 2
    monkeypatch.setattr(detector, "detect", with_little_memory)
    halved = run(4)
    assert sizes == [4, 2, 2, 2, 1]
    np.testing.assert_array_equal(halved.images, expected.images)
    np.testing.assert_allclose(halved.scores, expected.scores, atol=1e-6)
    (message,) = caplog.messages
    assert "evaluate.batch_size" in message
    limit = 1
    with pytest.raises(torch.OutOfMemoryError):
        run(4)


def test_float32_is_not_tf32_on_a_gpu() -> None:
    cudnn, cuda = torch.backends.cudnn, torch.device("cuda")
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    assert cudnn.allow_tf32, "torch's default"
    with exact_float32(cuda):
        assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
    assert (cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize("way", ["split", "image", "speed"])
def test_all_ways_to_detect_use_exact_float32(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate`, `predict` and the registry's flavor, and the measured speed."""
    index = noise_images(tmp_path, [(64, 64)])
    recipe = replace(load(model="retinanet_resnet18").recipe, image_size=64, max_size=64)
    detector, entered = build_detector(recipe, 3, None).eval(), list[torch.device]()

    @contextmanager
    def recorded(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    for module in (inference, predictor, profiling):
        monkeypatch.setattr(module, "exact_float32", recorded)
    monkeypatch.setattr(profiling, "MEASURED_S", 0.0)
    if way == "split":
        run_detector(detector, index, tmp_path, recipe, batch_size=1, device="cpu")
    elif way == "image":
        list(Predictor(LoadedDetector(detector, recipe, ("a", "b", "c"), "")).predict(tmp_path / "0.png"))
    else:
        profiling.measure(detector, index, tmp_path, recipe, Evaluate(device="cpu", batch_size=1))
    assert entered


def test_detections_belong_to_their_images_with_any_batch_size(tmp_path: Path) -> None:
    index = noise_images(tmp_path, [(64, 96)] * 5)
    recipe = replace(load(model="retinanet_resnet18").recipe, image_size=64, max_size=96, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()

    def run(batch_size: int, score_threshold: float | None = None) -> SplitDetections:
        return run_detector(
            detector, index, tmp_path, recipe, batch_size=batch_size, device="cpu", score_threshold=score_threshold
        )

    by_batch = [run(batch_size) for batch_size in (1, 2, 5)]
    first, second = (by_batch[0].select(by_batch[0].images == image).scores[:20] for image in (0, 1))
    assert np.abs(first - second).max() > 1e-3, "the images have different scores"
    for detections in by_batch:
        assert set(detections.images.tolist()) == set(range(5))
        for image in range(5):
            ours, single = (one.select(one.images == image) for one in (detections, by_batch[0]))
            np.testing.assert_allclose(ours.scores[:20], single.scores[:20], atol=1e-5)
    median = float(np.median(by_batch[1].scores))
    fewer = run(2, score_threshold=median)
    expected = by_batch[1].select(by_batch[1].scores >= median)
    assert 0 < len(expected) < len(by_batch[1])
    np.testing.assert_array_equal(fewer.images, expected.images)
    np.testing.assert_array_equal(fewer.scores, expected.scores)
    assert len(run(2, score_threshold=1.0)) == 0


MIXED_SIZES = [(60, 90), (90, 60), (75, 75), (61, 90), (40, 120), (90, 60), (75, 75), (60, 90), (120, 40), (60, 88)]


@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "retinanet_resnet18"])
def test_ap_does_not_depend_on_the_batch_size(tmp_path: Path, model: str) -> None:
    index = noise_images(tmp_path, MIXED_SIZES)
    recipe = replace(load(model=model).recipe, image_size=60, max_size=120, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()

    def run(batch_size: int) -> SplitDetections:
        return run_detector(detector, index, tmp_path, recipe, batch_size=batch_size, device="cpu")

    alone = run(1)
    truth = alone.select(np.arange(0, len(alone), 3))  # every third detection moved by up to 2 px is an object
    boxes = truth.boxes + np.random.default_rng(0).uniform(-2, 2, truth.boxes.shape).astype(np.float32)
    with_objects = replace(
        index,
        offsets=np.searchsorted(truth.images, np.arange(len(index) + 1)),
        boxes=boxes,
        labels=truth.labels,
        difficult=np.zeros(len(truth), np.bool_),
        crowd=np.zeros(len(truth), np.bool_),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
    )
    expected = coco_metrics.score(with_objects, alone, ("a", "b", "c")).stats["AP"]
    assert 0.02 < expected < 0.9
    for batch_size in (4, 16):
        detections = run(batch_size)
        assert detections.images.tolist() == alone.images.tolist(), "the order of the split"
        ap = coco_metrics.score(with_objects, detections, ("a", "b", "c")).stats["AP"]
        assert ap == pytest.approx(expected, abs=1e-4)
