"""The public API: exported names, and detection on every type of image."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detection
from detection.data.loading.image_io import read_image
from detection.errors import CheckpointError, DataError
from detection.models.build import build_detector, save_detector
from detection.params import load
from detection.predictor import ImageLike

CLASSES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(load(model="retinanet_resnet18").recipe, image_size=64, max_size=96, score_threshold=0.0)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "detector.pt"
    save_detector(path, build_detector(recipe, 3, None).state_dict(), recipe, CLASSES, "retinanet_resnet18")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i, size in enumerate([(64, 96), (80, 60), (64, 96)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / f"{i}.png")
    (path / "notes.txt").write_text("not an image")
    return path


def test_exported_names() -> None:
    names = ["DetectionError", "Evaluation", "ImageDetections", "Predictor", "__version__", "load"]
    assert detection.__all__ == names
    assert all(getattr(detection, name) for name in detection.__all__)
    assert dir(detection) == detection.__all__
    with pytest.raises(AttributeError):
        detection.nothing  # noqa: B018


def test_the_import_is_light() -> None:
    program = "import detection, sys; print({'torch', 'mlflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_all_types_of_images_give_the_same_detections(weights: Path, folder: Path) -> None:
    detector = detection.load(weights, device="cpu")
    assert detector.classes == CLASSES
    file = folder / "1.png"
    (first,) = detector.predict(file, score_threshold=0.0)
    assert (first.path, first.size) == (file, (80, 60))
    assert len(first) == len(first.boxes) == len(first.labels) > 0
    assert first.names == tuple(CLASSES[label] for label in first.labels)
    assert (np.diff(first.scores) <= 0).all()
    tensor = read_image(file)
    pil = Image.open(file)
    for image in (str(file), tensor, tensor.permute(1, 2, 0).numpy(), pil, [pil]):
        (again,) = detector.predict(image, score_threshold=0.0)
        np.testing.assert_array_equal(again.boxes, first.boxes)
        np.testing.assert_array_equal(again.scores, first.scores)


def test_a_folder_is_read_in_order_and_in_batches(weights: Path, folder: Path) -> None:
    detector = detection.load(str(weights), device="cpu")
    alone = list(detector.predict(folder, score_threshold=0.0, batch_size=1))
    assert [image.path.name for image in alone if image.path] == ["0.png", "1.png", "2.png"]
    batched = list(detector.predict((path for path in sorted(folder.glob("*.png"))), score_threshold=0.0))
    assert [image.path for image in batched] == [image.path for image in alone]
    assert [image.size for image in batched] == [(64, 96), (80, 60), (64, 96)]
    for one, other in zip(alone, batched, strict=True):
        height, width = one.size
        assert ((other.boxes >= 0) & (other.boxes <= [width, height, width, height])).all()
    same_shape = list(detector.predict([folder / "0.png", folder / "2.png"], score_threshold=0.0))
    np.testing.assert_allclose(same_shape[1].scores[:20], alone[2].scores[:20], atol=1e-5)


def test_the_score_threshold_keeps_what_scores_at_least_as_much(weights: Path, folder: Path) -> None:
    detector = detection.load(weights, device="cpu")
    (every,) = detector.predict(folder / "0.png", score_threshold=0.0)
    middle = float(np.median(every.scores))
    (some,) = detector.predict(folder / "0.png", score_threshold=middle)
    np.testing.assert_array_equal(some.scores, every.scores[every.scores >= np.float32(middle)])
    assert [entry["class"] for entry in some.to_json()] == list(some.names)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ],
)
def test_other_arrays_are_refused_with_their_shape(weights: Path, image: ImageLike) -> None:
    with pytest.raises(DataError, match="uint8 RGB"):
        next(detection.load(weights, device="cpu").predict(image))


def test_a_missing_source_is_an_error(weights: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        detection.load(tmp_path / "missing.pt")
    (tmp_path / "empty").mkdir()
    detector = detection.load(weights, device="cpu")
    for source in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(DataError):
            next(detector.predict(source))
