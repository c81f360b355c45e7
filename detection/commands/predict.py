"""`detection predict`: detections on images as JSON, and the images with boxes drawn on them."""

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.commands import Command
from detection.data.loading.image_io import image_files
from detection.errors import CheckpointError, DataError
from detection.files import DETECTOR, IMAGE_SUFFIXES

if TYPE_CHECKING:
    from detection.predictor import ImageDetections, Predictor

log = logging.getLogger(__name__)
RESULT = "detections.json"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="an image, or a folder of images")
    parser.add_argument("--weights", type=Path, default=DETECTOR, help="detector file (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument(
        "--threshold", type=_score, default=0.5, help="lowest score of a detection (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a score is between 0 and 1, not {text}")
    return value


def predict(source: Path, weights: Path, out: Path, threshold: float, device: str) -> str:
    """Detect objects on one image or on all images of a folder.

    Writes to `out` each image with its boxes drawn, under its own name, and `detections.json`: a list of
    `{file, width, height, detections: [{box, label, class, score}]}`, boxes `x1, y1, x2, y2` in pixels of the
    image as stored, 0-based and half-open.

    Args:
        source: An image, or a folder of images (sub-folders are not searched).
        weights: Detector file.
        out: Folder for the results.
        threshold: Detections with a lower score are left out.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: No images, or images that cannot be read (the others are processed first).
        CheckpointError: `weights` is not a detector file.
    """
    files = image_files(source)
    if out.resolve() == files[0].parent.resolve():
        raise DataError(f"--out {out} is the folder of the images; name another folder, file names are kept")
    if not weights.is_file():  # before torch is imported, which takes seconds
        raise CheckpointError(f"{weights} does not exist; train a detector first: dvc repro")
    from detection.predictor import load

    predictor = load(weights, device=device)
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    unread: list[str] = []
    for file in files:
        try:
            image = _predict_one(predictor, file, out, threshold)
        except DataError as error:
            unread.append(str(error))
            continue
        height, width = image.size
        results.append({"file": str(file), "width": width, "height": height, "detections": image.to_json()})
        names = (f"{name} {score:.2f}" for name, score in zip(image.names, image.scores, strict=True))
        log.info("%s: %s", file, ", ".join(names) or "no detections")
    (out / RESULT).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if unread:
        more = f" (and {len(unread) - 1} more of {len(files)})" if len(unread) > 1 else ""
        raise DataError(unread[0] + more)
    count = sum(len(result["detections"]) for result in results)
    return f"{count} detections on {len(results)} images: {out / RESULT}, annotated images in {out}"


def _predict_one(predictor: "Predictor", file: Path, out: Path, threshold: float) -> "ImageDetections":
    """Detect on one image, and save it with its boxes drawn."""
    from detection.data.loading.image_io import decode
    from detection.report.images.contact_sheet import draw_boxes

    (image,) = predictor.predict(file, score_threshold=threshold)
    name = file.name if file.suffix.lower() in IMAGE_SUFFIXES else f"{file.name}.png"
    drawn = draw_boxes(decode(file), image.boxes, image.labels, predictor.classes, image.scores)
    drawn.save(out / name)
    return image


COMMANDS = {
    "predict": Command(
        _add_arguments, lambda args: predict(args.source, args.weights, args.out, args.threshold, args.device)
    )
}
