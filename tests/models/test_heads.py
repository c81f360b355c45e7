import math

import pytest
import torch
from torch import nn

from detection.models.heads import GROUP_NORM, ConfusionMeter, rates


def test_rates_of_the_counted_samples() -> None:
    meter = ConfusionMeter("roi", 3)
    actual = torch.tensor([[0, 0, 0, 1], [1, 2, 2, 2]])
    predicted = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 0]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    meter.add(actual, predicted, mask)
    meter.add(actual[:, :1], predicted[:, :1], mask[:, :1])
    assert meter.total().tolist() == [[3, 1, 0], [0, 1, 2], [0, 0, 2]]
    assert rates(meter.total()) == pytest.approx({"accuracy": 6 / 9, "recall": 3 / 5, "precision": 3 / 6})


def test_reset_resumes_from_a_total_or_starts_at_0() -> None:
    meter, one = ConfusionMeter("rpn", 2), torch.ones(1, dtype=torch.int64)
    meter.reset(torch.tensor([[4, 3], [2, 1]]))
    meter.add(one, one, one.bool())
    assert meter.total().tolist() == [[4, 3], [2, 2]]
    meter.reset()
    assert all(math.isnan(rate) for rate in rates(meter.total()).values())
    assert not meter.state_dict(), "not in torchvision's state dict"


@pytest.mark.parametrize("bf16", [False, True])
def test_group_norm_is_torchs_on_a_cpu(bf16: bool) -> None:
    torch.manual_seed(0)
    ours, theirs, results = GROUP_NORM(64), nn.GroupNorm(32, 64), []
    for norm in (ours, theirs):
        images = torch.linspace(-3, 5, 2 * 64 * 25).view(2, 64, 5, 5).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = norm(images.bfloat16() if bf16 else images)
        (gradient,) = torch.autograd.grad(result.float().square().sum(), images)
        results.append((result, gradient))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
