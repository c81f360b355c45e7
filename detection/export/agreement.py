"""Agreement of an exported file with the detector, on real images.

Letters: N detections of an image.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detection.data.loading.batch import Batch, ImageSizes, Sample, collate
from detection.data.loading.loader import eval_sample
from detection.errors import VerificationError
from detection.export.onnx_file import INPUTS
from detection.export.torch_program import ExportedDetector
from detection.models.build import LoadedDetector, check_classes
from detection.models.detector import Detections

if TYPE_CHECKING:
    from detection.data.loading.prepared import Prepared

log = logging.getLogger(__name__)
MAX_BOX_DIFFERENCE, MAX_SCORE_DIFFERENCE = 0.05, 1e-4
"""Greatest accepted differences of boxes in pixels of the image, and of scores."""
MAX_UNSTABLE = 0.25
"""Accepted share of images on which the detections of the detector itself depend on rounding; see `rounded`."""
CONFIDENT = 0.3
"""Score of the detections that are compared after another resize, or half of the image's best score if that is less."""


class OnnxDetector(ExportedDetector):
    """A network file of `write_network`.

    Args:
        path: The file.
        threads: Threads; 0 for all cores.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        values = (images.numpy(), sizes.resized.numpy(), sizes.original.numpy())
        outputs = self.session.run(None, dict(zip(INPUTS, values, strict=True)))
        boxes, scores, labels, counts = (torch.from_numpy(output) for output in outputs)
        return [Detections(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greatest differences of matched detections."""

    images: int
    detections: int
    """Detections with a counterpart."""
    tied: int
    """Detections without one, whose score is that of the lowest; see `compare`."""
    unstable: int
    """Images left out, as the detector's own detections depend on rounding."""
    box: float
    """Pixels of the image."""
    score: float

    def __str__(self) -> str:
        tied = f", {self.tied} tied for the last places differ" if self.tied else ""
        unstable = f"; {self.unstable} images left out: rounding changes the detector's own" if self.unstable else ""
        return (
            f"{self.detections} detections on {self.images} images agree: boxes to {self.box:.4f} px, "
            f"scores to {self.score:.1e}{tied}{unstable}"
        )


def check(loaded: LoadedDetector, exported: ExportedDetector, images: Sequence[Tensor]) -> Agreement:
    """Compare an exported file with the detector: each image alone, and one and four at two sizes.

    Args:
        loaded: The detector, on the CPU.
        exported: The exported file.
        images: Tensor[3, H, W], uint8 RGB, one or more.

    Raises:
        VerificationError: A detection of one is not among the other's, or rounding alone changes the detector's own
            detections on more than `MAX_UNSTABLE` of the images.
    """
    batches = [[image] for image in images]
    height, width = images[0].shape[1:]
    for size in ((height, width), (height, max(32, width * 3 // 4))):  # another ratio gives another network input
        batches.append([_resized(images[i % len(images)], size) for i in range(4)])
    batches.append(batches[-1][:1])
    results, unstable = [], 0
    for number, part in enumerate(batches):
        batch = collate([sample(image, loaded) for image in part], loaded.recipe)
        with torch.inference_mode():
            expected = loaded.detector.detect(batch.images, batch.sizes)
            actual = exported.detect(batch.images, batch.sizes)
        for i, (ours, theirs) in enumerate(zip(expected, actual, strict=True)):
            results.append(compare(ours, theirs))
            if problem := results[-1].problem:
                unstable += 1
                if not compare(ours, rounded(loaded, batch)[i]).problem:
                    raise VerificationError(
                        f"the exported file disagrees with the detector in check {number}: {problem}"
                    )
                if unstable > MAX_UNSTABLE * sum(map(len, batches)):
                    scores = ours.scores.tolist() or [0.0]
                    raise VerificationError(
                        f"the exported file cannot be compared: rounding alone changes the detector's own detections "
                        f"on {unstable} images, the last with scores of {min(scores):.4f} to {max(scores):.4f}; "
                        "train it longer, or name other images: --images FOLDER"
                    )
    found = Agreement(
        images=len(results) - unstable,
        detections=sum(one.matched for one in results),
        tied=sum(one.tied for one in results),
        unstable=unstable,
        box=max(one.box for one in results),
        score=max(one.score for one in results),
    )
    if found.detections <= found.tied:
        log.warning(
            "the check says little: %d detections could be compared, and %d have the score of the image's lowest; "
            "export a trained detector, or name other images: --images FOLDER",
            found.detections,
            found.tied,
        )
    return found


def rounded(loaded: LoadedDetector, batch: Batch) -> list[Detections]:
    """Detections with other rounding: convolutions add in another order where channels come last.

    A rounding error decides about a box whose overlap is the threshold of the suppression, and with it about proposals.
    """
    detector = copy.deepcopy(loaded.detector).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found: list[Detections] = detector.detect(
            batch.images.contiguous(memory_format=torch.channels_last), batch.sizes
        )
    return found


def check_resize(loaded: LoadedDetector, path: Path, images: Sequence[Tensor], unmatched: float) -> str:
    """Compare a file with the resize inside with `detection predict`, and report the greatest differences.

    The pixels differ by one or two gray levels, and the scores with them.

    Args:
        loaded: The detector, on the CPU.
        path: The file.
        images: Tensor[3, H, W], uint8 RGB.
        unmatched: Accepted share of detections without a counterpart.

    Raises:
        VerificationError: More have none.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    similarity = Similarity()
    for image in images:
        boxes, scores, labels, counts = (
            torch.from_numpy(output) for output in session.run(None, {"images": image[None].numpy()})
        )
        batch = collate([sample(image, loaded)], loaded.recipe)
        with torch.inference_mode():
            (ours,) = loaded.detector.detect(batch.images, batch.sizes)
        count = int(counts[0])
        similarity.add(ours, Detections(boxes[0, :count], scores[0, :count], labels[0, :count]))
    return similarity.verdict("with the resize inside", unmatched, "use --resize outside")


def check_precision(
    loaded: LoadedDetector, exported: ExportedDetector, images: Sequence[Tensor], name: str, unmatched: float
) -> str:
    """Compare a network of lower precision with the detector; see `check_resize`."""
    similarity = Similarity()
    for image in images:
        batch = collate([sample(image, loaded)], loaded.recipe)
        with torch.inference_mode():
            similarity.add(
                loaded.detector.detect(batch.images, batch.sizes)[0], exported.detect(batch.images, batch.sizes)[0]
            )
    return similarity.verdict(f"in {name}", unmatched, "export in fp32, or name other images for the calibration")


class Similarity:
    """Detections of high scores (`CONFIDENT`) that overlap one of the same class by more than one half."""

    def __init__(self) -> None:
        self.total, self.unmatched, self.score = 0, 0, 0.0

    def add(self, ours: Detections, theirs: Detections) -> None:
        """Count the detections of an image."""
        from torchvision.ops import box_iou

        if not len(ours.scores):
            return
        keep = ours.scores >= min(CONFIDENT, float(ours.scores.max()) / 2)
        boxes, labels, scores = ours.boxes[keep], ours.labels[keep], ours.scores[keep]
        overlaps = F.pad(box_iou(boxes, theirs.boxes), (0, 1))  # a column for no counterpart
        overlaps[:, :-1][labels[:, None] != theirs.labels] = 0
        best, index = overlaps.max(1)
        found = best > 0.5
        self.total, self.unmatched = self.total + len(boxes), self.unmatched + int((~found).sum())
        if found.any():
            self.score = max(self.score, float((theirs.scores[index[found]] - scores[found]).abs().max()))

    def verdict(self, name: str, unmatched: float, fix: str) -> str:
        """Describe the similarity.

        Raises:
            VerificationError: More than the share `unmatched` has no counterpart.
        """
        if self.unmatched > self.total * unmatched:
            raise VerificationError(f"{name}, {self.unmatched} of {self.total} detections differ; {fix}")
        matched = f"{self.total - self.unmatched} of {self.total}"
        return f"{name}, {matched} detections match; scores differ by up to {self.score:.4f}"


def evaluated_split(loaded: LoadedDetector) -> tuple["Prepared", str]:
    """The prepared dataset, and the split on which AP is compared: test, or val if it is empty.

    Raises:
        CheckpointError: The dataset has other classes than the detector.
        DataError: Nothing is prepared, or the images changed.
    """
    from detection.data.loading.prepared import Prepared

    prepared = Prepared.load()
    check_classes("the detector", loaded, prepared.classes)
    split = "test" if len(prepared.index("test")) else "val"
    prepared.check_unchanged(split)
    return prepared, split


def compare_ap(loaded: LoadedDetector, exported: ExportedDetector, loss: float = 0.0) -> str:
    """Compare the AP on the prepared test split (val, if it is empty).

    Args:
        loaded: The detector, on the CPU.
        exported: The exported file.
        loss: Accepted loss of AP; 0 for an AP equal to four digits.

    Raises:
        CheckpointError, DataError: See `evaluated_split`.
        VerificationError: The AP differs by more.
    """
    from detection.evaluation.protocol import coco_metrics
    from detection.inference import run_detector

    prepared, split = evaluated_split(loaded)
    index = prepared.index(split)
    values = []
    for detector in (loaded.detector, exported):
        found = run_detector(detector, index, prepared.root, loaded.recipe, batch_size=4, device="cpu")
        values.append(coco_metrics.score(index, found, prepared.classes).stats["AP"])
    ours, theirs = values
    if ours - theirs > loss if loss else round(ours, 4) != round(theirs, 4):
        raise VerificationError(f"the exported file's AP on {split} is {theirs:.4f}, the detector's {ours:.4f}")
    as_ours = f"{ours:.4f} of the detector" if loss else "as the detector's"
    return f"AP on the {len(index)} {split} images: {theirs:.4f}, {as_ours}"


def sample(image: Tensor, loaded: LoadedDetector) -> Sample:
    """An image, resized as for `detect`."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return eval_sample(image, *none, 0, loaded.recipe)


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(image, list(size), antialias=True)
    return resized


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two lists of detections on an image."""

    problem: str = ""
    """First difference; empty if they agree."""
    matched: int = 0
    """Detections with a counterpart."""
    tied: int = 0
    """Detections without one, which ties excuse."""
    box: float = 0.0
    """Greatest difference of matched boxes, in pixels."""
    score: float = 0.0
    """Greatest difference of matched scores."""


def compare(ours: Detections, theirs: Detections) -> Comparison:
    """Match detections one to one.

    Detections whose score is that of the lowest, to the accepted difference, may be missing: the limit of
    detections cuts ties in any order.
    """
    free = torch.ones(len(theirs.scores), dtype=torch.bool)
    matched, tied, box_difference, score_difference = 0, 0, 0.0, 0.0
    lowest = float(ours.scores.min()) if len(ours.scores) else 0.0
    for box, score, label in zip(ours.boxes, ours.scores, ours.labels, strict=True):
        score_off = (theirs.scores - score).abs()
        box_off = (theirs.boxes - box).abs().amax(1)
        fits = free & (theirs.labels == label) & (score_off <= MAX_SCORE_DIFFERENCE) & (box_off <= MAX_BOX_DIFFERENCE)
        if not fits.any():
            if float(score) - lowest <= MAX_SCORE_DIFFERENCE and len(ours.scores) <= len(theirs.scores):
                tied += 1
                continue
            return Comparison(f"no counterpart for class {int(label)}, score {float(score):.4f}, {box.tolist()}")
        match = int(torch.where(fits, box_off, torch.inf).argmin())
        free[match] = False
        matched += 1
        box_difference = max(box_difference, float(box_off[match]))
        score_difference = max(score_difference, float(score_off[match]))
    if bool((free & (theirs.scores > lowest + MAX_SCORE_DIFFERENCE)).any()):
        return Comparison(f"{int(free.sum())} detections that the detector does not have")
    return Comparison("", matched, tied, box_difference, score_difference)
