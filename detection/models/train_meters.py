"""What a classifier made of the samples it was trained on: counted where the loss is computed.

Letters: K classes, background included.
"""

import torch
from torch import Tensor, nn

from detection import distributed


class ConfusionMeter(nn.Module):
    """How often each class was taken for each, since it was last asked; 0 is the background.

    The counts stay on the device: adding to them makes no host wait. They are no part of the state dict.

    Args:
        name: Whose samples these are: `rpn`, `roi`.
        classes: K.
    """

    counts: Tensor

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("counts", torch.zeros(classes, classes, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def add(self, truth: Tensor, told: Tensor, counted: Tensor) -> None:
        """Count some samples.

        Args:
            truth: int64, the class of each sample, 0..K-1; any shape.
            told: int64, the class that it was taken for; the same shape.
            counted: bool, which of them count; the same shape.
        """
        cell = truth * len(self.counts) + told
        self.counts.view(-1).scatter_add_(0, cell.flatten(), counted.flatten().long())

    def total(self) -> Tensor:
        """Tensor[K, K], int64, on the CPU: a row a true class, a column a told one; of all ranks together."""
        return torch.stack(distributed.gather(self.counts.cpu())).sum(0)

    def restart(self, total: Tensor | None = None) -> None:
        """Count from 0, or go on from the `total` of an earlier process."""
        self.counts.zero_()
        if total is not None and distributed.is_main():  # the ranks' counts add up to it
            self.counts.copy_(total)


def meters(detector: nn.Module) -> dict[str, ConfusionMeter]:
    """A detector's, by name; one-stage detectors have none."""
    return {part.name: part for part in detector.modules() if isinstance(part, ConfusionMeter)}


def rates(counts: Tensor) -> dict[str, float]:
    """Three shares that say how a classifier does on its samples.

    Args:
        counts: Tensor[K, K], from `ConfusionMeter.total`.

    Returns:
        `accuracy`: samples told right. `recall`: objects told as their class. `precision`: of what was told
        to be an object, that which is one of this class. NaN where there is none of those.
    """
    right = counts.diagonal().double()
    parts = {
        "accuracy": (right.sum(), counts.sum()),
        "recall": (right[1:].sum(), counts[1:].sum()),
        "precision": (right[1:].sum(), counts[:, 1:].sum()),
    }
    return {name: float(some / all_) for name, (some, all_) in parts.items()}
