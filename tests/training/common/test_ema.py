"""Moving average of the weights against torch's."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detection.training.common.ema import MovingAverage


def test_it_equals_torchs_and_resumes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours: Any = MovingAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(5, 3))
        if step == 2:  # as a restarted process does
            state, ours = ours.state_dict(), MovingAverage(model, 0.9)
            ours.load_state_dict(state)
        ours.update(model)
        theirs.update_parameters(model)
        expected = theirs.module.state_dict()
        for name, value in ours.module.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, expected[name]), name
    assert ours.updates == 4
    assert ours.module[1].num_batches_tracked == 4


def test_an_update_never_waits_for_the_device() -> None:
    """The device `meta` has no data to read."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to("meta")
    average = MovingAverage(model, 0.9)
    for _ in range(3):
        average.update(model)
