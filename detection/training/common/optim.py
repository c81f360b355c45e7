"""Parameter groups, optimizers, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torchvision.ops import FrozenBatchNorm2d

from detection.params.recipe_base import Optimizer, Phase, Schedule

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)
PRETRAINED = (
    *("backbone.body.", "backbone.features."),
    *(f"backbone.extra.0.{layer}." for layer in (1, 3, 5)),  # SSD: VGG16's conv5, behind the first map
)
"""Prefixes of the modules that hold pretrained weights."""


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay.

    Normalization layers, biases and the pretrained backbone may each have their own (see `Optimizer`).

    Returns:
        Parameter groups for torch, each with `lr`, `weight_decay`, and the flag `backbone`.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            lr, decay = settings.lr, settings.weight_decay
            if isinstance(module, NORMS):
                decay = decay if settings.norm_weight_decay is None else settings.norm_weight_decay
            elif name == "bias":
                lr *= settings.bias_lr_factor
                decay = decay if settings.bias_weight_decay is None else settings.bias_weight_decay
            backbone = f"{prefix}.".startswith(PRETRAINED)
            if backbone:
                lr *= settings.backbone_lr_factor
            groups.setdefault((lr, decay, backbone), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay, "backbone": backbone}
        for (lr, decay, backbone), parameters in groups.items()
    ]


def make_optimizer(model: nn.Module, settings: Optimizer) -> TorchOptimizer:
    """Make the optimizer; each parameter group keeps its full learning rate as `base_lr`."""
    groups = [{**group, "base_lr": group["lr"]} for group in parameter_groups(model, settings)]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.nesterov)
        case "adam":  # fused: one pass over the weights, four times as fast on a CPU
            return torch.optim.Adam(groups, settings.lr, betas=(settings.momentum, 0.999), fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, settings.lr, betas=(settings.momentum, 0.999), fused=True)


def set_learning_rate(optimizer: TorchOptimizer, factor: float, freeze_backbone: bool = False) -> None:
    """Set each group's learning rate to its full one times `factor`, and a frozen backbone's to 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if freeze_backbone and group.get("backbone") else group["base_lr"] * factor


def freeze_backbone(optimizer: TorchOptimizer, frozen: bool) -> bool:
    """Freeze the backbone, whose backward pass is then left out, or unfreeze it.

    Returns:
        True if that changed anything.
    """
    parameters = [p for group in optimizer.param_groups if group.get("backbone") for p in group["params"]]
    changed = [parameter for parameter in parameters if parameter.requires_grad == frozen]
    for parameter in changed:
        parameter.requires_grad_(not frozen)
    return bool(changed)


def phase_at(
    schedule: Schedule, step: int, steps: int, steps_per_epoch: int, in_epochs: bool
) -> tuple[Phase, int, int]:
    """Return the phase of a step, the phase's first step, and the first step after it."""
    unit, first = steps_per_epoch if in_epochs else 1, 0
    for phase in schedule.phases[:-1]:
        end = round(phase.until * unit)
        if step < end:
            return phase, first, end
        first = end
    return schedule.phases[-1] if schedule.phases else Phase(until=steps / unit), first, steps


def learning_rate_factor(schedule: Schedule, step: int, steps: int, steps_per_epoch: int, in_epochs: bool) -> float:
    """Fraction of the full learning rate at a step.

    A pure function of the step, so that a resumed training needs no scheduler state.

    Args:
        schedule: Shape and warm-up.
        step: Optimizer steps taken so far, from 0.
        steps: Steps of the whole training.
        steps_per_epoch: Steps per epoch, for milestones in epochs and the decay per epoch.
        in_epochs: Milestones and phases are in epochs, else in iterations.
    """
    warmup = min(schedule.warmup_iterations, max(steps_per_epoch, 1))
    warmed = step / warmup if step < warmup else 1.0
    phase, first, end = phase_at(schedule, step, steps, max(steps_per_epoch, 1), in_epochs)
    step, steps, factor = step - first, end - first, 1.0
    match schedule.name:
        case "multistep":
            unit = steps_per_epoch if in_epochs else 1
            passed = sum(step >= milestone * unit for milestone in schedule.milestones)
            factor = schedule.gamma**passed
        case "cosine":
            progress = min(step / max(steps - 1, 1), 1.0)
            factor = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
        case "exponential":
            factor = schedule.gamma ** (step // max(steps_per_epoch, 1))
        case "constant":
            pass
    if warmed < 1:
        factor *= schedule.warmup_factor + (1 - schedule.warmup_factor) * warmed
    return factor * phase.lr_factor
