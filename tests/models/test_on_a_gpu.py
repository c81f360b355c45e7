"""No host synchronization in a training step: it runs on the device `meta`, whose tensors have no data.

Every operation that reads data raises there: `.item()`, `nonzero`, boolean indexing, a copy to the host.
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
from detection.training.common.optim import make_optimizer

CASES: dict[str, dict[str, Any]] = {
    "fasterrcnn": {"fpn_channels": 32, "roi.hidden_channels": 32},
    "fasterrcnn_vgg16": {"roi.hidden_channels": 32},
    "retinanet": {"fpn_channels": 32},
    "fcos": {"fpn_channels": 32},
    "ssd300": {},
}


class CopyRecorder(TorchDispatchMode):
    """Records copies between devices that block the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.blocking: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [one for one in args if isinstance(one, Tensor)]
        if isinstance(result, Tensor) and tensors and not kwargs.get("non_blocking"):
            devices = {one.device.type for one in (result, *tensors) if one.dim()}
            if len(devices) > 1:
                self.blocking.append(f"{func} {sorted(devices)}")
        return result


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CopyRecorder]:
    def all_valid(boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float) -> Tensor:
        return valid.clone()

    monkeypatch.setattr(nms, "_in_parallel", all_valid)  # its work depends on the boxes: the one exemption
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not available on this device
    with torch.device("meta"):
        yield CopyRecorder()


@pytest.mark.parametrize("model", CASES)
def test_a_training_step_never_synchronizes(model: str, recorder: CopyRecorder) -> None:
    recipe = without_weights(load(model=model, dataset="voc2007").recipe).update(CASES[model])
    detector = build_detector(recipe, 20, None).train()
    optimizer = make_optimizer(detector, recipe.optimizer)
    side = recipe.image_size if recipe.resize == "stretch" else 256
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    labels, mask = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    targets = Targets(torch.zeros(2, 5, 4), labels, mask, torch.full((2, 2), side))
    detector.losses(images, targets)  # caches the anchors, which are copied to the device
    with recorder:
        losses = detector.losses(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert recorder.blocking == []
    assert all(value.shape == () for value in losses.values())


def test_synchronization_is_detected(recorder: CopyRecorder) -> None:
    values = torch.zeros(5)
    for synchronize in (lambda: values.sum().item(), values.nonzero, lambda: values[values > 0], values.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            synchronize()
    with recorder:
        torch.zeros(5, device="cpu").to("meta")
        torch.zeros(5, device="cpu").to("meta", non_blocking=True)
    assert len(recorder.blocking) == 1
