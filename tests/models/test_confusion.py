import math

import pytest
import torch

from detection.models.train_meters import ConfusionMeter, rates


def test_rates_are_those_of_the_samples_that_count() -> None:
    meter = ConfusionMeter("roi", 3)
    truth = torch.tensor([[0, 0, 0, 1], [1, 2, 2, 2]])
    told = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 0]])
    counted = torch.tensor([[True, True, True, True], [True, True, True, False]])
    meter.add(truth, told, counted)
    meter.add(truth[:, :1], told[:, :1], counted[:, :1])
    assert meter.total().tolist() == [[3, 1, 0], [0, 1, 2], [0, 0, 2]]
    assert rates(meter.total()) == pytest.approx({"accuracy": 6 / 9, "recall": 3 / 5, "precision": 3 / 6})


def test_it_goes_on_from_a_total_and_starts_anew() -> None:
    meter, one = ConfusionMeter("rpn", 2), torch.ones(1, dtype=torch.int64)
    meter.restart(torch.tensor([[4, 3], [2, 1]]))
    meter.add(one, one, one.bool())
    assert meter.total().tolist() == [[4, 3], [2, 2]]
    meter.restart()
    assert all(math.isnan(rate) for rate in rates(meter.total()).values())
    assert not meter.state_dict(), "torchvision's detectors have no such tensor"
