"""A whole training step as a GPU would take it, on the device `meta`, whose tensors have a shape and no data.

Whatever asks for data raises: `.item()`, `nonzero`, a selection by a mask, a copy to the host.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detection.data.loading.batch import Targets
from detection.models.build import build_detector, without_weights
from detection.ops import nms
from detection.params import load
from detection.training.optim import make_optimizer

CASES: dict[str, dict[str, Any]] = {
    "fasterrcnn": {"fpn_channels": 32, "roi.hidden_channels": 32},
    "fasterrcnn_vgg16": {"roi.hidden_channels": 32},
    "retinanet": {"fpn_channels": 32},
    "fcos": {"fpn_channels": 32},
    "ssd300": {},
}


class Watch(TorchDispatchMode):
    """Notes copies to the device that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [one for one in args if isinstance(one, Tensor)]
        if isinstance(result, Tensor) and given and not kwargs.get("non_blocking"):
            places = {one.device.type for one in (result, *given) if one.dim()}
            if len(places) > 1:
                self.waits.append(f"{func} {sorted(places)}")
        return result


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    def some(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        return scores.argsort(descending=True)[: len(scores) // 2]

    monkeypatch.setattr(nms, "nms", some)  # torchvision's kernel waits for its own result: the one exemption
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
    with torch.device("meta"):
        yield Watch()


@pytest.mark.parametrize("model", CASES)
def test_a_training_step_never_waits_for_the_gpu(model: str, on_a_gpu: Watch) -> None:
    recipe = without_weights(load(model=model, dataset="voc2007").recipe).update(CASES[model])
    detector = build_detector(recipe, 20, None).train()
    optimizer = make_optimizer(detector, recipe.optimizer)
    side = recipe.image_size if recipe.resize == "stretch" else 256
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    labels, mask = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    targets = Targets(torch.zeros(2, 5, 4), labels, mask, torch.full((2, 2), side))
    detector.losses(images, targets)  # the anchors of a size are made once, and copied to the device
    with on_a_gpu:
        losses = detector.losses(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert on_a_gpu.waits == []
    assert all(value.shape == () for value in losses.values())


def test_what_waits_is_seen(on_a_gpu: Watch) -> None:
    values = torch.zeros(5)
    for waiting in (lambda: values.sum().item(), values.nonzero, lambda: values[values > 0], values.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waiting()
    with on_a_gpu:
        torch.zeros(5, device="cpu").to("meta")
        torch.zeros(5, device="cpu").to("meta", non_blocking=True)
    assert len(on_a_gpu.waits) == 1
