"""Training-time confusion matrix of a classification head.

Letters: K classes, background included.
"""

import torch
from torch import Tensor, nn

from detection import distributed


class ConfusionMeter(nn.Module):
    """Confusion matrix of the sampled anchors or proposals since the last reset; class 0 is the background.

    The counts stay on the device, so that counting never synchronizes. They are not in the state dict.

    Args:
        name: Name of the head: `rpn`, `roi`.
        classes: K.
    """

    counts: Tensor

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("counts", torch.zeros(classes, classes, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def add(self, actual: Tensor, predicted: Tensor, mask: Tensor) -> None:
        """Count samples.

        Args:
            actual: int64 in 0..K-1, true class of each sample; any shape.
            predicted: int64 in 0..K-1, predicted class; the same shape.
            mask: bool, samples that count; the same shape.
        """
        cell = actual * len(self.counts) + predicted
        self.counts.view(-1).scatter_add_(0, cell.flatten(), mask.flatten().long())

    def total(self) -> Tensor:
        """Tensor[K, K], int64, on the CPU, summed over the ranks; one row per true class."""
        return torch.stack(distributed.gather(self.counts.cpu())).sum(0)

    def reset(self, total: Tensor | None = None) -> None:
        """Start at 0, or resume from the `total` of an earlier process."""
        self.counts.zero_()
        if total is not None and distributed.is_main():  # the counts of the ranks add up to it
            self.counts.copy_(total)


def meters(detector: nn.Module) -> dict[str, ConfusionMeter]:
    """Meters of a detector by name; one-stage detectors have none."""
    return {part.name: part for part in detector.modules() if isinstance(part, ConfusionMeter)}


def rates(counts: Tensor) -> dict[str, float]:
    """Micro-averaged classification rates.

    Args:
        counts: Tensor[K, K], from `ConfusionMeter.total`.

    Returns:
        `accuracy`: fraction of samples classified correctly. `recall`: TP / (TP + FN) over objects.
        `precision`: TP / (TP + FP) over foreground predictions. NaN where the denominator is 0.
    """
    correct = counts.diagonal().double()
    fractions = {
        "accuracy": (correct.sum(), counts.sum()),
        "recall": (correct[1:].sum(), counts[1:].sum()),
        "precision": (correct[1:].sum(), counts[:, 1:].sum()),
    }
    return {name: float(part / whole) for name, (part, whole) in fractions.items()}
