"""Where a backbone's weights come from: crops of the training objects, or torchvision's ImageNet weights."""

import logging
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from detection.errors import CheckpointError
from detection.models.backbones import feature_state, is_feature, make_backbone
from detection.models.hardware import autocast
from detection.params.recipe import Optimizer, Schedule
from detection.params.sections import Crops
from detection.training.crops import CropSet, augment, centre
from detection.training.optimisation import learning_rate_factor, make_optimizer, set_learning_rate
from detection.training.progress import Progress

log = logging.getLogger(__name__)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A backbone's features under global average pooling and one linear layer.

    The networks' own classifiers (VGG's two layers of 4096 above all) are made for 224-pixel pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        self.network = make_backbone(backbone)
        whole: Any = self.network
        if hasattr(whole, "fc"):
            whole.fc = nn.Linear(whole.fc.in_features, classes)
        else:
            widths = [m.out_channels for m in whole.features.modules() if isinstance(m, nn.Conv2d)]
            whole.avgpool = nn.AdaptiveAvgPool2d(1)
            whole.classifier = nn.Linear(widths[-1], classes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits Tensor[B, classes] of Tensor[B, 3, S, S] in 0..1."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def train_on_crops(
    backbone: str,
    train: CropSet,
    val: CropSet,
    classes: int,
    settings: Crops,
    device: torch.device,
    precision: torch.dtype,
    seed: int,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train a backbone to tell objects and background apart.

    Args:
        backbone: Its name.
        train: Crops of the training split.
        val: Crops of the validation split; may be empty.
        classes: Number of classes, background not counted.
        settings: Size, length and learning rate.
        device: Where to train.
        precision: bfloat16 for autocast, or float32.
        seed: Of the first weights, the order and the augmentation.

    Returns:
        The features' state dict, and a row an epoch: epoch, lr, loss, accuracy, val_accuracy.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(backbone, classes + 1).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(
        model, Optimizer(lr=settings.lr, weight_decay=settings.weight_decay, norm_weight_decay=0.0)
    )
    per_epoch = max(len(train) // settings.batch_size, 1)
    schedule = Schedule(name="cosine", warmup_iterations=per_epoch, warmup_factor=0.05)
    steps, step = per_epoch * settings.epochs, 0
    curve = []
    with Progress(steps, 0, per_epoch) as progress:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            losses, right = [], []
            order = torch.randperm(len(train), generator=generator)
            for part in torch.split(order[: per_epoch * settings.batch_size], settings.batch_size):
                factor = learning_rate_factor(schedule, step, steps, per_epoch, True)
                set_learning_rate(optimizer, factor)
                pixels = augment(train.pixels[part], settings.image_size, generator).to(device)
                labels = train.labels[part].to(device)
                with autocast(device, precision):
                    logits = model(pixels.contiguous(memory_format=torch.channels_last)).float()
                    loss = nn.functional.cross_entropy(logits, labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
                right.append((logits.argmax(1) == labels).float().mean())
                step += 1
                progress.step(step)
            row = {
                "epoch": epoch,
                "lr": settings.lr * factor,
                "loss": float(torch.stack(losses).mean()),
                "accuracy": float(torch.stack(right).mean()),
                "val_accuracy": _accuracy(model, val, settings, device, precision),
            }
            curve.append(row)
            progress.show(step, epoch, {k: row[k] for k in ("loss", "accuracy", "val_accuracy")})
    return {k: v.cpu() for k, v in feature_state(model.network).items()}, curve


def _accuracy(
    model: nn.Module, val: CropSet, settings: Crops, device: torch.device, precision: torch.dtype
) -> float:
    """Share of crops told right; NaN where there are none."""
    if len(val) == 0:
        return float("nan")
    model.eval()
    right = 0
    with torch.inference_mode(), autocast(device, precision):
        for first in range(0, len(val), 256):
            part = slice(first, first + 256)
            logits = model(centre(val.pixels[part], settings.image_size).to(device))
            right += int((logits.argmax(1).cpu() == val.labels[part]).sum())
    return right / len(val)


def published_weights(backbone: str) -> tuple[dict[str, Tensor], str]:
    """Torchvision's ImageNet weights of a backbone, from its cache or downloaded; the hash is checked.

    Returns:
        The features' state dict (of VGG16 with fc6 and fc7), and the weights' name.

    Raises:
        CheckpointError: They cannot be downloaded, or the file is damaged.
    """
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise CheckpointError(
            f"the published weights of {backbone} cannot be had ({error}). Put {weights.url} at {cache}, "
            "or set pretrain.method to crops or none"
        ) from None
    return {k: v for k, v in state.items() if is_feature(k, backbone)}, str(weights)
