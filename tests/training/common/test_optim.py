import math
from typing import Any

import pytest
import torch
from torch import nn

from detection.models.build import build_detector, without_weights
from detection.params import Optimizer, Schedule, load
from detection.params.recipe_base import Phase
from detection.training.common.optim import (
    freeze_backbone,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    phase_at,
    set_learning_rate,
)


class Net(nn.Module):
    """Pretrained body, normalization layer and head, with the names that detectors use."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.fixed = nn.Linear(2, 2).requires_grad_(False)


def settings_of(net: nn.Module, optimizer: Optimizer) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(net, optimizer)
    where = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: where[id(p)] for name, p in net.named_parameters() if id(p) in where}


def test_each_type_of_parameter_gets_its_rate_and_decay() -> None:
    optimizer = Optimizer(
        lr=1.0,
        weight_decay=0.1,
        norm_weight_decay=0.0,
        bias_weight_decay=0.01,
        bias_lr_factor=2.0,
        backbone_lr_factor=0.5,
    )
    assert settings_of(Net(), optimizer) == {
        "backbone.body.0.weight": (0.5, 0.1),
        "backbone.body.0.bias": (1.0, 0.01),
        "backbone.body.1.weight": (0.5, 0.0),
        "backbone.body.1.bias": (0.5, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (2.0, 0.01),
    }


def test_the_default_groups_are_the_backbone_and_the_rest() -> None:
    groups = parameter_groups(Net(), Optimizer(lr=0.1))
    assert [(group["lr"], group["backbone"]) for group in groups] == [(0.1, True), (0.1, False)]


@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "ssd300"])
def test_the_pretrained_part_of_a_detector_is_found(model: str) -> None:
    detector = build_detector(without_weights(load(model=model).recipe), 3, None)
    rates = settings_of(detector, Optimizer(lr=1.0, backbone_lr_factor=0.1))
    assert {lr for lr, _ in rates.values()} == {1.0, 0.1}
    pretrained = [name for name, (lr, _) in rates.items() if lr == 0.1]
    assert all(name.startswith("backbone.") for name in pretrained)
    if model == "ssd300":  # VGG16's 13 layers with conv5, without the new fc6 and fc7
        assert len([name for name in pretrained if name.endswith(".weight")]) == 13
        assert "backbone.extra.0.7.1.weight" not in pretrained


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_keep_the_ratio_between_groups(optimizer_type: type) -> None:
    settings = Optimizer(name=optimizer_type.__name__.lower(), lr=0.1, bias_lr_factor=2.0)  # type: ignore[arg-type]
    optimizer = make_optimizer(Net(), settings)
    assert type(optimizer) is optimizer_type
    set_learning_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_frozen_backbone_does_not_change(name: str) -> None:
    net = Net()
    optimizer = make_optimizer(net, Optimizer(name=name, lr=0.1, weight_decay=0.1))  # type: ignore[arg-type]

    def moved(freeze: bool) -> set[str]:
        before = {k: v.clone() for k, v in net.named_parameters()}
        set_learning_rate(optimizer, 1.0, freeze)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return {k.split(".")[0] for k, v in net.named_parameters() if not torch.equal(v, before[k])}

    assert moved(freeze=True) == {"head"}
    assert moved(freeze=False) == {"backbone", "head"}


def curve(schedule: Schedule, steps: int, each: int, in_epochs: bool = True) -> list[float]:
    return [learning_rate_factor(schedule, step, steps, each, in_epochs) for step in range(steps)]


def test_multistep_in_epochs_and_in_iterations() -> None:
    schedule = Schedule(name="multistep", milestones=(2, 3), gamma=0.1)
    assert curve(schedule, 40, 10) == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 10)
    assert curve(schedule, 4, 10, in_epochs=False) == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_multistep_equals_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    torchs = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([parameter], 1.0), [3, 7], 0.5)
    for factor in curve(Schedule(milestones=(3, 7), gamma=0.5), 10, 1):
        assert factor == pytest.approx(torchs.get_last_lr()[0])
        torchs.optimizer.step()
        torchs.step()


def test_cosine_falls_from_one_to_its_final_factor() -> None:
    factors = curve(Schedule(name="cosine", final=0.1), 101, 10)
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)


def test_exponential_falls_once_per_epoch() -> None:
    factors = curve(Schedule(name="exponential", gamma=0.96), 30, 10)
    assert factors == pytest.approx([1.0] * 10 + [0.96] * 10 + [0.96**2] * 10)


def test_warm_up_rises_linearly_and_ends_with_the_first_epoch() -> None:
    factors = curve(Schedule(name="constant", warmup_iterations=5, warmup_factor=0.2), 20, 10)
    assert factors[:6] == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1.0])
    capped = curve(Schedule(name="constant", warmup_iterations=1000, warmup_factor=0.0), 20, 10)
    assert capped[9] == pytest.approx(0.9)
    assert capped[10:] == [1.0] * 10


def test_the_schedule_restarts_in_each_phase() -> None:
    phases = (Phase(until=2, freeze_backbone=True), Phase(until=4, lr_factor=0.1))
    factors = curve(Schedule(name="exponential", gamma=0.5, phases=phases), 40, 10)
    assert factors == pytest.approx([1.0] * 10 + [0.5] * 10 + [0.1] * 10 + [0.05] * 10)
    schedule = Schedule(name="constant", warmup_iterations=5, warmup_factor=0.2, phases=phases)
    assert curve(schedule, 40, 10)[:6] == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1.0])
    assert [phase_at(schedule, step, 40, 10, True)[1:] for step in (0, 19, 20, 39)] == [
        (0, 20),
        (0, 20),
        (20, 40),
        (20, 40),
    ]
    assert [phase_at(schedule, step, 4, 10, False)[0] for step in (1, 2)] == list(phases)


def test_rates_are_finite_at_the_smallest_sizes() -> None:
    for name in ("multistep", "cosine", "exponential", "constant"):
        schedule = Schedule(name=name, milestones=(1,), warmup_iterations=10)
        assert all(map(math.isfinite, curve(schedule, 1, 1)))


def test_a_frozen_backbone_has_no_backward_pass() -> None:
    net: Any = Net()
    optimizer = make_optimizer(net, Optimizer(name="adamw", lr=0.1))
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    assert not freeze_backbone(optimizer, False)
    assert freeze_backbone(optimizer, True)
    assert not freeze_backbone(optimizer, True)
    output = net.head(net.backbone.body(torch.randn(2, 3, 4, 4)).mean((2, 3))).sum()
    assert net.head.weight.requires_grad
    output.backward()
    assert all(p.grad is None for p in net.backbone.body.parameters())
    assert net.head.weight.grad is not None
    assert freeze_backbone(optimizer, False)
    assert all(p.requires_grad for p in groups)
    assert not net.fixed.weight.requires_grad, "not of the optimizer"
