"""Python API of a trained detector: load it from anywhere, detect on any kind of image."""

import tempfile
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detection.data.loading.batch import Sample, collate
from detection.data.loading.image_io import read_image, to_rgb
from detection.data.loading.index import Record, pack
from detection.data.loading.loader import batches_of_equal_size, eval_sample
from detection.data.loading.tiles import cut
from detection.device import autocast, exact_float32, pick_device, pick_precision
from detection.errors import DataError
from detection.files import DETECTOR
from detection.inference import merge_windows, run_detector, run_on_batches
from detection.input_files import image_files
from detection.models.build import LoadedDetector, check_classes, load_detector

if TYPE_CHECKING:
    from detection.evaluation.evaluate import Evaluation

WINDOW = 4
"""Batches whose images are read together, to make batches of images of equal size."""
ImageLike = str | Path | NDArray[np.uint8] | Tensor | Image.Image
"""A file, an array [H, W, 3], a tensor [3, H, W] (both uint8 RGB), or a PIL image."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageDetections:
    """Detections on one image, best score first."""

    boxes: NDArray[np.float32]
    """[N, 4] `x1, y1, x2, y2`, pixels of the image (a file's after its EXIF rotation), 0-based, half-open."""
    scores: NDArray[np.float32]
    """[N] in 0..1."""
    labels: NDArray[np.int64]
    """[N] class indices from 0."""
    names: tuple[str, ...]
    """[N] class names."""
    size: tuple[int, int]
    """Height and width in pixels."""
    path: Path | None = None
    """File of the image, if it was given as one."""

    def __len__(self) -> int:
        return len(self.scores)

    def to_json(self) -> list[dict[str, Any]]:
        """One `{box, label, class, score}` per detection; boxes rounded to 0.01 px, scores to 0.0001."""
        columns = zip(self.boxes, self.labels, self.names, self.scores, strict=True)
        return [
            {
                "box": [round(float(side), 2) for side in box],
                "label": int(label),
                "class": name,
                "score": round(float(score), 4),
            }
            for box, label, name, score in columns
        ]


class Predictor:
    """A trained detector on a device.

    Args:
        loaded: Detector in evaluation mode, with its recipe and class names.
        precision: `auto`, `bf16` or `fp32`.
    """

    def __init__(self, loaded: LoadedDetector, precision: str = "fp32") -> None:
        self.detector, self.recipe, self.classes = loaded.detector, loaded.recipe, loaded.classes
        self.model, self.tiles, self.upright = loaded.model, loaded.tiles, loaded.upright
        self.device = next(loaded.detector.parameters()).device
        self._precision, self._dtype = precision, pick_precision(precision, self.device)

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, score_threshold: float = 0.5, batch_size: int = 8
    ) -> Iterator[ImageDetections]:
        """Detect objects, lazily and in batches of images of equal size.

        Args:
            images: One image, a folder of image files (in order of name), or any iterable of images.
            score_threshold: Detections with a lower score are left out.
            batch_size: Greatest number of images per forward pass. `WINDOW` times as many images are read before
                the first result, unless it is 1.

        Yields:
            One `ImageDetections` per image, in order.

        Raises:
            DataError: A file or folder is missing or not an image, or an array has another shape or dtype.
        """
        if self.tiles is not None:
            yield from (self._tiled(path, image, score_threshold, batch_size) for path, image in self._images(images))
            return
        waiting = (self._sample(path, image) for path, image in self._images(images))
        while window := list(islice(waiting, batch_size * WINDOW if batch_size > 1 else 1)):
            sizes = np.array([sample.original for _, sample in window], dtype=np.int32)
            results: dict[int, ImageDetections] = {}
            done = 0
            for rows in sorted(batches_of_equal_size(sizes, batch_size, self.recipe), key=lambda rows: int(rows[0])):
                batch = [window[row] for row in rows]
                results |= zip(rows.tolist(), self._detect(batch, score_threshold), strict=True)
                while done in results:
                    yield results.pop(done)
                    done += 1

    def evaluate(self, split: str = "test", *, batch_size: int = 16, verify: bool = False) -> "Evaluation":
        """Evaluate on a split of `data/prepared` by the COCO and VOC protocols, with error analysis.

        Args:
            split: `train`, `val` or `test`.
            batch_size: Images per forward pass.
            verify: Compare the COCO numbers with pycocotools.

        Raises:
            DataError: Nothing is prepared, or images changed since.
            CheckpointError: The detector has other classes than the data.
        """
        from detection.data.loading.prepared import Prepared
        from detection.evaluation.evaluate import evaluate

        prepared = Prepared.load()
        prepared.check_unchanged(split)
        loaded = LoadedDetector(self.detector, self.recipe, self.classes, self.model, self.tiles)
        check_classes(self.model, loaded, prepared.classes)
        index = prepared.index(split)
        device = self.device.type
        results = run_detector(
            self.detector, index, prepared.root, self.recipe, batch_size=batch_size, device=device, tiles=self.tiles
        )
        return evaluate(index, results, self.classes, verify=verify)

    def export(
        self,
        out: str | Path,
        *,
        to: str = "onnx",
        resize: str = "inside",
        precision: str = "fp32",
        core: bool = False,
        images: str | Path | None = None,
    ) -> Path:
        """Export to ONNX or `.pt2`, checked on images; see `detection export`.

        Args:
            out: Folder for `detector.onnx` and `infer.py`, or `detector.pt2`.
            to: `onnx` or `pt2`.
            resize: `inside` or `outside` the ONNX file.
            precision: `fp32`, `fp16` or `int8` weights of backbone and heads.
            core: Write `core.onnx` too, the network without decoding and suppression.
            images: Image or folder for the check; None for the prepared val split.

        Returns:
            The exported file.

        Raises:
            DataError: No images for the check, or packages are missing.
            VerificationError: The exported file's detections differ from the detector's.
        """
        from detection.export.checked import Options, write_checked

        detector = self.detector if self.device.type == "cpu" else deepcopy(self.detector).cpu()
        loaded = LoadedDetector(detector, self.recipe, self.classes, self.model, self.tiles, self.upright)
        folder = Path(images) if images else None
        options = Options(to=to, resize=resize, precision=precision, core=core, images=folder)
        return write_checked(loaded, Path(out), options)[1]

    def _tiled(self, path: Path | None, image: Tensor, threshold: float, batch_size: int) -> ImageDetections:
        """Detect on the windows of an image, and merge."""
        assert self.tiles is not None
        height, width = image.shape[1:]
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        flags = np.zeros(0, np.bool_)
        whole = pack([Record("", "", height, width, *none, flags, flags, np.zeros(0, np.float32))])
        index = cut(whole, self.tiles)
        samples: list[Sample] = []
        for (h, w), (_, left, top, _, _) in zip(index.sizes.tolist(), index.windows.tolist(), strict=True):
            samples.append(eval_sample(image[:, top : top + h, left : left + w], *none, len(samples), self.recipe))
        batches = (samples[i : i + batch_size] for i in range(0, len(samples), batch_size))
        loaded = (collate(batch, self.recipe) for batch in batches)
        found = run_on_batches(self.detector, loaded, self._precision, threshold, "batch_size")
        merged = merge_windows(found, index, self.recipe)
        names = tuple(self.classes[label] for label in merged.labels)
        return ImageDetections(merged.boxes, merged.scores, merged.labels, names, (height, width), path)

    def _images(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[Path | None, Tensor]]:
        """File (if any) and tensor [3, H, W] of every image."""
        if isinstance(images, str | Path):
            yield from ((path, read_image(path, upright=self.upright)) for path in image_files(Path(images)))
        elif isinstance(images, np.ndarray | Tensor | Image.Image):
            yield None, _tensor(images)
        else:
            for image in images:
                if isinstance(image, str | Path):
                    yield Path(image), read_image(image, upright=self.upright)
                else:
                    yield None, _tensor(image)

    def _sample(self, path: Path | None, image: Tensor) -> tuple[Path | None, Sample]:
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return path, eval_sample(image, no_boxes, no_labels, 0, self.recipe)

    def _detect(self, images: list[tuple[Path | None, Sample]], threshold: float) -> Iterator[ImageDetections]:
        batch = collate([sample for _, sample in images], self.recipe)
        with torch.inference_mode(), exact_float32(self.device), autocast(self.device, self._dtype):
            found = self.detector.detect(batch.images.to(self.device), batch.sizes)
        for (path, sample), detections in zip(images, found, strict=True):
            keep = detections.scores >= threshold
            boxes, scores, labels = (
                part[keep].cpu().numpy() for part in (detections.boxes, detections.scores, detections.labels)
            )
            names = tuple(self.classes[label] for label in labels)
            yield ImageDetections(boxes, scores, labels, names, sample.original, path)


def load(source: str | Path = DETECTOR, *, device: str = "auto", precision: str = "fp32") -> Predictor:
    """Load a trained detector.

    Args:
        source: A detector file, an experiment (a name that `dvc exp show` lists, a git revision or
            `workspace`), an MLflow run id or run name, or a registry URI `models:/<name>@<alias>`.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto`, `bf16` or `fp32`.

    Raises:
        CheckpointError: The file is not a detector of this project.
        DataError: No file, experiment or run has this name, or it has no detector.
        TrackingError: The MLflow store cannot be read.
    """
    chosen = pick_device(device)
    if Path(source).is_file() or str(source).endswith(".pt"):
        return Predictor(load_detector(source, chosen), precision)
    with tempfile.TemporaryDirectory(prefix="detection-load-") as folder:
        from detection.experiments.registry import extract_detector

        path = extract_detector(str(source), Path(folder))
        return Predictor(load_detector(path, chosen), precision)


def _tensor(image: NDArray[np.uint8] | Tensor | Image.Image) -> Tensor:
    if isinstance(image, Image.Image):
        image = np.array(to_rgb(image))
    if isinstance(image, np.ndarray):
        expected, channels = "array [H, W, 3]", image.shape[-1:]
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) if image.ndim == 3 else None
    else:
        expected, channels = "tensor [3, H, W]", image.shape[:1]
        tensor = image if image.ndim == 3 else None
    if tensor is None or tuple(channels) != (3,) or tensor.dtype != torch.uint8:
        raise DataError(f"expected a uint8 RGB {expected}, got {image.dtype} of shape {tuple(image.shape)}")
    return tensor
