"""Choices of a training's setup that depend on the device."""

from dataclasses import replace

import pytest
import torch

from detection import distributed
from detection.errors import ParamsError
from detection.params import Train, load
from detection.training.setup import check_determinism, validate_batch_size

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_validation_takes_no_more_of_a_gpu_than_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen images of 1344 x 1344 pixels take 10.4 GiB in Faster R-CNN, a training batch of two takes 2.4."""
    recipe = load(model="fasterrcnn", dataset="coco2017").recipe
    sizes = [
        validate_batch_size(Train(accumulate=accumulate), replace(recipe, batch_size=batch), CUDA)
        for batch, accumulate in ((2, 1), (16, 1), (16, 8), (64, 1), (1, 1))
    ]
    assert sizes == [2, 16, 2, 16, 1]
    assert validate_batch_size(Train(), recipe, CPU) == 16
    assert validate_batch_size(Train(validate_batch_size=3), recipe, CUDA) == 3
    monkeypatch.setattr(distributed, "_expected", (0, 8))
    assert validate_batch_size(Train(), recipe, CUDA) == 2


@pytest.mark.parametrize("model", ["fasterrcnn_vgg16", "fasterrcnn_vgg16_600", "fasterrcnn_resnet50_c4"])
def test_bitwise_on_a_gpu_refuses_roi_pool(model: str) -> None:
    recipe = load(model=model, dataset="voc2007").recipe
    with pytest.raises(ParamsError, match="roi_pool"):
        check_determinism(recipe, "bitwise", CUDA)
    check_determinism(recipe, "bitwise", CPU)
    check_determinism(recipe, "seeded", CUDA)


@pytest.mark.parametrize("model", ["fasterrcnn", "retinanet", "ssd300"])
def test_bitwise_on_a_gpu_takes_other_recipes(model: str) -> None:
    check_determinism(load(model=model, dataset="voc2007").recipe, "bitwise", CUDA)
