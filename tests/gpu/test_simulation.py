"""Whole training steps and detection of every recipe on fake CUDA tensors, compared with the budgets beside this file.

An operation on tensors of two devices or of dtypes that do not fit raises, and so does one that reads a value.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.fake_gpu import TrafficMeter, fake_gpu, move, walk_graph
from benchmarks.simulate import make_batch, read_budgets, recipes, simulate
from detection.models.build import build_detector, without_weights
from detection.models.heads import GroupNorm
from detection.params import load

BUDGETS = read_budgets()
TOLERANCE = 1.02
"""Factor by which operations and bytes may exceed their budget, for other versions of torch."""
needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")


def test_every_recipe_has_a_budget() -> None:
    assert list(BUDGETS) == recipes()


@needs_cuda_build
@pytest.mark.parametrize("model", recipes())
def test_a_recipe_stays_within_its_budget(model: str) -> None:
    """Write new budgets with `python -m benchmarks.simulate --write` if a change needs more on purpose."""
    row, budget = simulate(model)[0], BUDGETS[model]
    assert (row.model, row.batch) == (budget.model, budget.batch)
    assert (row.waits, row.detect_waits) == (budget.waits, budget.detect_waits), "host synchronizations"
    for name in ("ops", "gb", "float32_gb", "peak_gib", "detect_ops", "detect_gb"):
        limit = getattr(budget, name) * TOLERANCE
        assert getattr(row, name) <= limit, f"{name}: {getattr(row, name)} exceeds {limit:g}"


class Convs(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), between, nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


class ToFloat(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().relu()


@pytest.fixture
def device() -> Iterator[torch.device]:
    with fake_gpu() as device:
        yield device


@needs_cuda_build
def test_float32_activations_are_detected(device: torch.device) -> None:
    shares = []
    for between in (nn.ReLU(), GroupNorm(4, 8), nn.GroupNorm(4, 8), ToFloat()):
        model, images = Convs(between), torch.zeros(16, 8, 64, 64, device=device, dtype=torch.bfloat16)
        move(model, device)
        with TrafficMeter() as meter, torch.autocast("cuda", torch.bfloat16):
            model(images).sum().backward()
        assert meter.traffic.peak > images.numel() * 2
        shares.append(meter.traffic.by_dtype["float32"] / meter.traffic.bytes.total())
    assert max(shares[:2]) < 0.2
    assert min(shares[2:]) > 0.4


@needs_cuda_build
def test_synchronization_and_wrong_devices_are_detected(device: torch.device) -> None:
    values = torch.zeros(5, device=device)
    for synchronize in (lambda: values.sum().item(), values.nonzero, lambda: values[values > 0], values.tolist):
        with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
            synchronize()
    with pytest.raises(RuntimeError, match="device"):
        values + torch.zeros(5)
    with TrafficMeter() as meter:
        torch.zeros(5).to(device)
        torch.zeros(5).to(device, non_blocking=True)
        values.cpu()
    assert len(meter.traffic.waits) == 2


@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "ssdlite320"])
def test_gradients_equal_those_of_the_engine(model: str) -> None:
    recipe = without_weights(load(model=model, dataset="voc2007").recipe)
    torch.manual_seed(0)
    detector, batch = build_detector(recipe, 3, None).train(), make_batch(2, 128, 128)
    gradients = []
    for walk in (False, True):
        torch.manual_seed(1)
        for part in detector.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.reset_running_stats()
        total = torch.stack(list(detector.losses(batch.images, batch.targets).values())).sum()
        if walk:
            walk_graph([total], [torch.ones_like(total)])
        else:
            total.backward()
        gradients.append([parameter.grad for parameter in detector.parameters()])
        detector.zero_grad(set_to_none=True)
    assert all(value is not None for value in gradients[0])
    for expected, value in zip(*gradients, strict=True):
        assert torch.equal(expected, value)
