"""Postprocessing of SSD300 at batch 8: ours against torchvision's loop over classes.

    python -m benchmarks.postprocess [--rounds 9]

Two sets of raw outputs: as of a trained detector (a few confident locations, the rest background), and of
random weights (all classes about equally likely, so that every default box is a candidate for each of 90
classes). The detections of both sides are compared, too. CPU time of one thread, medians, alternating.
"""

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.sides import CASES, build, timed
from detection.models.detector import Detections, ImageSizes
from detection.models.ssd import SSD

BATCH, SIDE, CLASSES = 8, 300, 90


def trained(priors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits and deltas as of a trained detector: twelve objects per image, each detected nearby."""
    logits = torch.randn(BATCH, len(priors), CLASSES + 1, generator=generator)
    logits[..., 0] += 9
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    for image in range(BATCH):
        for _ in range(12):
            center = torch.rand(2, generator=generator) * SIDE
            near = ((centers - center).abs().amax(1) < 16).nonzero()[:, 0]
            label = int(torch.randint(1, CLASSES + 1, (1,), generator=generator))
            logits[image, near, label] += 8 + 2 * torch.rand(len(near), generator=generator)
    return logits, torch.randn(BATCH, len(priors), 4, generator=generator) * 0.5


def untrained(priors: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits and deltas of random weights."""
    shape = (BATCH, len(priors))
    logits = torch.randn(*shape, CLASSES + 1, generator=generator) * 0.3
    return logits, torch.randn(*shape, 4, generator=generator) * 0.5


def differing(mine: list[Detections], theirs: list[dict[str, Tensor]]) -> int:
    """Number of detections without an equal on the other side (boxes within 1e-3 px, scores within 1e-5).

    Detections that tie with the last score are not counted.
    """
    count = 0
    for a, b in zip(mine, theirs, strict=True):
        last = b["scores"][-1] + 1e-5 if len(b["scores"]) else 0.0
        near = (a.boxes[:, None] - b["boxes"][None]).abs().amax(2) < 1e-3
        near &= (a.scores[:, None] - b["scores"][None]).abs() < 1e-5
        near &= a.labels[:, None] + 1 == b["labels"][None]
        count += int((~near.any(1) & (a.scores > last)).sum() + (~near.any(0) & (b["scores"] > last)).sum())
    return count


def main() -> None:
    """Print one row per set of outputs, and the smaller ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    detector, peer = build(CASES["ssd300"], CLASSES)
    assert isinstance(detector, SSD)
    maps = [(side, side) for side in (38, 19, 10, 5, 3, 1)]
    priors = detector.anchors(maps, (SIDE, SIDE))
    inside = torch.tensor([[SIDE, SIDE]] * BATCH)
    sizes, ratios = ImageSizes(inside, inside), []
    print(f"SSD300, batch {BATCH}, {CLASSES} classes, {rounds} rounds, CPU time")
    for make in (trained, untrained):
        logits, deltas = make(priors, torch.Generator().manual_seed(0))
        outputs = {"cls_logits": logits, "bbox_regression": deltas}
        results: dict[str, Any] = {}

        def ours(logits: Tensor = logits, deltas: Tensor = deltas, results: dict[str, Any] = results) -> None:
            results["ours"] = detector.select(logits, deltas, priors, sizes)

        def torchvision(outputs: dict[str, Tensor] = outputs, results: dict[str, Any] = results) -> None:
            results["torchvision"] = peer.postprocess_detections(outputs, [priors] * BATCH, [(SIDE, SIDE)] * BATCH)

        with torch.inference_mode():
            ours()
            torchvision()
            times = [(timed(ours)[1], timed(torchvision)[1]) for _ in range(rounds)]
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        candidates = int((logits.softmax(-1)[..., 1:] > 0.01).sum()) // BATCH
        detections = sum(len(one.scores) for one in results["ours"])
        ratios.append(b / a)
        print(
            f"{make.__name__:7} {candidates:7,} candidates per image: ours {a * 1e3:7.1f} ms, torchvision "
            f"{b * 1e3:7.1f} ms, {b / a:.2f} x; {detections} detections, "
            f"{differing(results['ours'], results['torchvision'])} differ",
            flush=True,
        )
    print(f"smaller ratio: {min(ratios):.2f}")


if __name__ == "__main__":
    main()
