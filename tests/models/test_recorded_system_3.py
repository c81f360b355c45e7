"""Faster R-CNN on VGG16 against chenyuntc/simple-faster-rcnn-pytorch (367db36), from image files to losses.

Recorded with the original's trainer on VGG16's layers with 8 and 16 channels; images and weights are `noise`. Batches
come from the loader: with padding the losses differ by up to 2 %.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

from detection.data.loading.batch import Batch, ImageSizes
from detection.data.loading.index import Record, pack
from detection.data.loading.loader import DetectionDataset, Loader
from detection.models import faster_rcnn
from detection.models.detector import Detections
from detection.models.faster_rcnn import FasterRCNN
from detection.ops.matcher import BalancedSample
from detection.params import FasterRCNNRecipe, load
from tests.models.recorded_inputs import fill, image, recorded

SIZES = [(300, 451), (562, 1000)]
WIDTH, CLASSES = 16, 20
VGG_LAYERS: list[str | int] = [8, 8, "M", 8, 8, "M", 16, 16, 16, "M", 16, 16, 16, "M", 16, 16, WIDTH, "M"]


def recipe_of() -> FasterRCNNRecipe:
    """The recipe with few channels; images of the sizes above are not resized."""
    changes = {"rpn.channels": WIDTH, "roi.hidden_channels": 32, "augmentation": "none"}
    recipe = load(model="fasterrcnn_vgg16", dataset="voc2007").recipe.update(changes)
    assert isinstance(recipe, FasterRCNNRecipe)
    return recipe


def detector() -> FasterRCNN:
    narrow = FasterRCNN(recipe_of(), CLASSES, VGG(make_layers(VGG_LAYERS), num_classes=1))
    fill(narrow)
    fill(narrow.rpn, 0.5)
    return narrow


def use_float64_layers(model: nn.Module) -> None:
    """Sum in float64, since the rounding of float32 sums depends on the processor: up to 1.5e-6 in a score."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.double()
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
            layer.register_forward_hook(lambda *call: call[-1].float())


def batch_of(sizes: list[tuple[int, int]], folder: Path, train: bool) -> Batch:
    """A batch of image files, each with three objects, from the loader."""
    files = []
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(image(height, width, seed=i)).save(folder / f"{i}.png")
        fractions = np.array([[0.1, 0.1, 0.5, 0.7], [0.4, 0.3, 0.95, 0.9], [0.6, 0.05, 0.7, 0.2]])
        boxes = (fractions * [width, height, width, height]).round()
        none = np.zeros(3, bool)
        labels, areas = np.array([3, 7, 14]), np.zeros(3, np.float32)
        files.append(Record(f"{i}.png", str(i), height, width, boxes.astype(np.float32), labels, none, none, areas))
    recipe = recipe_of().update({"image_size": min(min(size) for size in sizes), "max_size": max(map(max, sizes))})
    loader = Loader(DetectionDataset(pack(files), folder, recipe, train), len(sizes), workers=0, shuffle=False)
    (batch,) = loader.epoch(0)
    return batch


def samples(arrays: dict[str, NDArray[Any]]) -> Any:
    """Replaces `balanced_sample`: the original's sample of anchors, then of proposals and objects."""
    calls = iter(["anchor", "roi"])

    def sample(positive: Tensor, negative: Tensor, count: int, fraction: float) -> BalancedSample:
        kind = next(calls)
        index, label = torch.from_numpy(arrays[f"{kind}_sample"]).long(), torch.from_numpy(arrays[f"{kind}_positive"])
        assert torch.equal(positive.gather(1, index), label)
        assert torch.equal(negative.gather(1, index), ~label)
        return BalancedSample(index, label, torch.ones_like(label))

    return sample


@pytest.mark.parametrize("size", SIZES)
def test_the_losses_of_an_image_file_are_the_originals(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four to 1e-6, on the original's sample; a sampled index fits only if the proposals are equal in order."""
    arrays, batch = recorded("system_3_{}x{}".format(*size)), batch_of([size], tmp_path, train=True)
    assert batch.images.shape[2:] == size
    monkeypatch.setattr(faster_rcnn, "balanced_sample", samples(arrays))
    losses = detector().train().losses(batch.images, batch.targets)
    for name, expected in zip(["rpn_box", "rpn_objectness", "roi_box", "roi_class"], arrays["losses"], strict=True):
        assert float(losses[name].detach()) == pytest.approx(float(expected), rel=1e-6), name


@pytest.mark.parametrize("size", SIZES)
def test_the_detections_on_an_image_file_are_the_originals(size: tuple[int, int], tmp_path: Path) -> None:
    arrays, batch = recorded("system_3_{}x{}".format(*size)), batch_of([size], tmp_path, train=False)
    exact = detector().eval()
    use_float64_layers(exact)
    with torch.inference_mode():
        (found,) = exact.detect(batch.images, batch.sizes)
    expected = arrays["detections"]  # the best: x1, y1, x2, y2, score; without boxes that clipping leaves empty
    assert len(found.scores) == arrays["detection_count"]
    np.testing.assert_allclose(found.scores[: len(expected)].numpy(), expected[:, 4], atol=1e-6)
    np.testing.assert_allclose(found.boxes[: len(expected)].numpy(), expected[:, :4], atol=2.5e-3)
    assert found.labels[: len(expected)].tolist() == arrays["labels"].tolist()


def detect(batch: Batch) -> list[Detections]:
    with torch.inference_mode():
        return detector().eval().detect(batch.images, batch.sizes)


def test_detections_do_not_depend_on_the_other_images_of_a_batch(tmp_path: Path) -> None:
    sizes = [(240, 300), (270, 240), (240, 300), (240, 406)]
    batch = batch_of(sizes, tmp_path, train=False)
    assert batch.images.shape[2:] == (270, 406)  # padded to the largest, not to multiples of 32
    narrow = detector().eval()
    with torch.inference_mode():
        together = narrow.detect(batch.images, batch.sizes)
    for i, (height, width) in enumerate(sizes):
        alone = ImageSizes(batch.sizes.resized[i : i + 1], batch.sizes.original[i : i + 1])
        images = batch.images[i : i + 1, :, :height, :width]
        with torch.inference_mode():
            (expected,) = narrow.detect(images, alone)
        assert len(expected.scores) == len(together[i].scores) > 0
        torch.testing.assert_close(together[i].scores, expected.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(together[i].boxes, expected.boxes, atol=1e-2, rtol=0)


def test_locations_in_the_padding_propose_nothing() -> None:
    narrow = detector().eval()
    images, sizes = torch.zeros(2, 3, 320, 480), torch.tensor([[320, 480], [200, 250]])
    features = narrow.features(images)
    anchors, counts = narrow.rpn.anchors.for_batch(features, images)
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
    logits = torch.where((x > 250) | (y > 200), 5.0, -5.0)[None].expand(2, -1)  # best in the padding of the second
    deltas = torch.zeros(2, len(anchors), 4)
    proposals, mask = narrow.rpn.propose(logits, deltas, anchors, counts, sizes)
    assert mask[1].any()
    inside = torch.minimum(anchors[(x < 250) & (y < 200)].clamp(min=0), torch.tensor([250, 200, 250, 200]))
    distance = (proposals[1][mask[1]][:, None] - inside).abs().amax(dim=2)
    assert float(distance.amin(dim=1).max()) < 1e-3
