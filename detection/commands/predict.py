"""`detection predict`: detections on images as JSON, and the images with boxes drawn on them."""

import argparse
import glob
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from detection.commands import Command
from detection.data.loading.image_io import image_files
from detection.errors import CheckpointError, DataError
from detection.files import DETECTOR, IMAGE_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

    from detection.predictor import ImageDetections, Predictor

log = logging.getLogger(__name__)
RESULT = "detections.json"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="source", help="image, folder, pattern, or .txt file of paths"
    )
    parser.add_argument("--recursive", action="store_true", help="search the sub-folders too")
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


def predict(
    sources: Path | Sequence[Path], weights: Path, out: Path, threshold: float, device: str, recursive: bool = False
) -> str:
    """Detect objects on images, and write the results as they come.

    Writes to `out` each image with its boxes drawn, under its path relative to the common folder of all images, and
    `detections.json`: a list of `{file, width, height, detections: [{box, label, class, score}]}`, boxes
    `x1, y1, x2, y2` in pixels of the image after its EXIF rotation, 0-based and half-open. An interrupted command
    leaves what was done until then.

    Args:
        sources: Images, folders of images, patterns, or text files with one path per line.
        weights: Detector file.
        out: Folder for the results.
        threshold: Detections with a lower score are left out.
        device: `auto`, `cpu` or `cuda`.
        recursive: Search sub-folders too.

    Raises:
        DataError: No images, or images that cannot be read (all are named; the others are processed).
        CheckpointError: `weights` is not a detector file.
    """
    files = find_images([sources] if isinstance(sources, Path) else sources, out, recursive)
    base = Path(os.path.commonpath([file.absolute().parent for file in files]))
    if out.resolve() == base.resolve():
        raise DataError(f"--out {out} is the folder of the images; name another folder, file names are kept")
    if not weights.is_file():  # before torch is imported, which takes seconds
        raise CheckpointError(f"{weights} does not exist; train a detector first: dvc repro")
    from detection.predictor import load

    predictor = load(weights, device=device)
    out.mkdir(parents=True, exist_ok=True)
    unread: list[Path] = []
    images, count = 0, 0
    with _JsonList(out / RESULT) as results:
        for file, image in _detect_all(predictor, files, threshold, unread):
            _draw(predictor, file, image, out / file.absolute().relative_to(base))
            height, width = image.size
            results.append({"file": str(file), "width": width, "height": height, "detections": image.to_json()})
            names = (f"{name} {score:.2f}" for name, score in zip(image.names, image.scores, strict=True))
            log.info("%s: %s", file, ", ".join(names) or "no detections")
            images, count = images + 1, count + len(image)
    plural = "" if images == 1 else "s"
    summary = f"{count} detections on {images} image{plural}: {out / RESULT}, annotated images in {out}"
    if unread:
        log.info("%s", summary)
        raise DataError(f"{len(unread)} of {len(files)} images cannot be read: {', '.join(map(str, unread))}")
    return summary


def find_images(sources: Sequence[Path], out: Path, recursive: bool) -> list[Path]:
    """Image files of all sources in order, each once, without those under `out`.

    Raises:
        DataError: A source does not exist or has no images.
    """
    files: list[Path] = []
    for source in sources:
        if source.suffix.lower() == ".txt" and source.is_file():
            lines = source.read_text("utf-8-sig", errors="replace").splitlines()
            files += [source.parent / line.strip() for line in lines if line.strip()]
        elif not source.exists() and glob.has_magic(str(source)):
            found = sorted(Path(name) for name in glob.glob(str(source), recursive=True))
            if not found:
                raise DataError(f"{source} matches no file; give an image file or a folder of images")
            files += [file for file in found if file.is_file()]
        else:
            files += image_files(source, recursive)
    inside = out.resolve()
    result = [file for file in dict.fromkeys(files) if not recursive or inside not in file.resolve().parents]
    if not result:
        raise DataError(f"there are no images in {', '.join(map(str, sources))}")
    return result


def _detect_all(
    predictor: "Predictor", files: Sequence[Path], threshold: float, unread: list[Path]
) -> Iterator[tuple[Path, "ImageDetections"]]:
    """Detections of every file that can be read, in order; the others are logged and appended to `unread`."""
    from detection.data.loading.image_io import read_image

    waiting: deque[Path] = deque()

    def tensors() -> Iterator["Tensor"]:
        for file in files:
            try:
                image = read_image(file, upright=True)
            except DataError as error:
                log.warning("%s", error)
                unread.append(file)
                continue
            waiting.append(file)
            yield image

    for image in predictor.predict(tensors(), score_threshold=threshold):
        yield waiting.popleft(), image


def _draw(predictor: "Predictor", file: Path, image: "ImageDetections", path: Path) -> None:
    """Save an image with its boxes drawn."""
    from detection.data.loading.image_io import decode
    from detection.report.images.contact_sheet import draw_boxes

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_boxes(decode(file, upright=True), image.boxes, image.labels, predictor.classes, image.scores)
    drawn.save(path if file.suffix.lower() in IMAGE_SUFFIXES else path.with_name(f"{path.name}.png"))


class _JsonList:
    """JSON list on disk that is valid after an interruption too."""

    def __init__(self, path: Path) -> None:
        self._path, self._separator = path, "\n"

    def __enter__(self) -> Self:
        self._file = self._path.open("w", encoding="utf-8")
        self._file.write("[")
        return self

    def append(self, value: dict[str, Any]) -> None:
        """Write one entry."""
        self._file.write(self._separator + json.dumps(value, indent=1))
        self._separator = ",\n"

    def __exit__(self, *_: object) -> None:
        self._file.write("\n]\n")
        self._file.close()


def _run(args: argparse.Namespace) -> str:
    return predict(args.sources, args.weights, args.out, args.threshold, args.device, args.recursive)


COMMANDS = {"predict": Command(_add_arguments, _run)}
