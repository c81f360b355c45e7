"""`detection predict`: draw what a trained detector finds on pictures, and write it down."""

import json
import logging
from pathlib import Path
from typing import Any

from detection.errors import CheckpointError, DataError

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
RESULT = "detections.json"


def predict(source: Path, weights: Path, out: Path, threshold: float, device: str) -> str:
    """Detect on one picture or on all pictures of a folder.

    Leaves in `out` each picture with its boxes drawn, under its own name, and `detections.json`: a list of
    `{file, width, height, detections: [{box, label, class, score}]}`, boxes as `x1, y1, x2, y2` in pixels of
    the picture as stored, 0-based and half-open.

    Args:
        source: A picture, or a folder of pictures (its sub-folders are not looked at).
        weights: A detector's file.
        out: Folder of the results.
        threshold: Detections that score lower are left out.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        DataError: Nothing to look at, or pictures that cannot be read (the others are done all the same).
        CheckpointError: `weights` is not a detector's file.
    """
    files = find_pictures(source)
    if out.resolve() == files[0].parent.resolve():
        raise DataError(f"--out {out} is where the pictures lie; name another folder, they keep their names")
    if not weights.is_file():  # before torch is imported, which takes seconds
        raise CheckpointError(f"{weights} is not there; train a detector first: dvc repro")

    from detection.device import pick_device
    from detection.models.build import load_detector

    loaded = load_detector(weights, pick_device(device))
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    unread: list[str] = []
    for file in files:
        try:
            found.append(_predict_one(file, loaded, out, threshold))
        except DataError as error:
            unread.append(str(error))
            continue
        log.info("%s: %s", file, _in_words(found[-1]["detections"]))
    (out / RESULT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if unread:
        more = f" (and {len(unread) - 1} more of {len(files)})" if len(unread) > 1 else ""
        raise DataError(unread[0] + more)
    objects = sum(len(one["detections"]) for one in found)
    return f"{objects} objects on {len(found)} pictures: {out / RESULT}, and the pictures beside it"


def find_pictures(source: Path) -> list[Path]:
    """The picture itself, or the pictures in a folder in order of name.

    Raises:
        DataError: There is no such file or folder, or no picture in it.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} is not there; give a picture, or a folder of pictures")
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"there is no picture in {source} ({', '.join(SUFFIXES)})")
    return files


def _predict_one(file: Path, loaded: Any, out: Path, threshold: float) -> dict[str, Any]:
    """Detect on one picture, draw it, and return its entry of the JSON."""
    from PIL import Image

    from detection.data.loading.image_io import read_image
    from detection.inference import above_threshold, detect_image, detections_to_json
    from detection.report.images.boxes_on_image import draw_boxes

    picture = read_image(file)
    boxes, scores, labels = above_threshold(detect_image(loaded.detector, loaded.recipe, picture), threshold)
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    name = file.name if file.suffix.lower() in SUFFIXES else f"{file.name}.png"  # its ending says no format
    draw_boxes(image, boxes, labels, loaded.classes, scores).save(out / name)
    return {
        "file": str(file),
        "width": image.width,
        "height": image.height,
        "detections": detections_to_json(boxes, scores, labels, loaded.classes),
    }


def _in_words(detections: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['class']} {one['score']:.2f}" for one in detections) or "nothing"
