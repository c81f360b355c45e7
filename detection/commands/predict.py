"""`detection predict`: detections on images and videos as JSON, and both with boxes drawn on them."""

import argparse
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from detection.commands import Command
from detection.errors import CheckpointError, DataError
from detection.files import DETECTOR, HEIF_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from detection.input_files import InputFiles, find_inputs
from detection.signals import StopSignals

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from detection.evaluation.coco_ids import CocoIds
    from detection.predictor import ImageDetections, Predictor
    from detection.video import Frame, Video

log = logging.getLogger(__name__)
RESULT, IDS = "detections.json", "detection_ids.json"
DEFAULT_THRESHOLD = 0.5
FRAMES_PER_LINE = 100
"""Frames of a video between two log lines."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", type=Path, nargs="*", metavar="source", help="image, video, folder, pattern, or .txt file of paths")
    add("--camera", type=_count(0), metavar="NUMBER", help="detect on a camera, 0 for the first, until Ctrl-C")
    add("--recursive", action="store_true", help="search the sub-folders too")
    add("--weights", type=Path, default=DETECTOR, help="detector file (default: %(default)s)")
    add("--out", type=Path, default=Path("predictions"), help="default: %(default)s")
    add("--threshold", type=_score, help=f"lowest score (default: {DEFAULT_THRESHOLD}; 0 with --format coco)")
    add(
        "--format",
        choices=("json", "coco"),
        default="json",
        help="detections per image, or COCO results for `detection score`, without drawn images; default: %(default)s",
    )
    add("--ground-truth", type=Path, metavar="FILE", help="COCO: instances.json, whose ids the results get")
    add("--every", type=_count(1), default=1, metavar="N", help="videos: detect on every N-th frame")
    add("--no-images", action="store_true", help="write no images and videos with boxes drawn")
    add("--batch-size", type=_count(1), default=8, metavar="N", help="images per forward pass (default: %(default)s)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a score is between 0 and 1, not {text}")
    return value


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, not {text}")
        return int(text)

    return parse


def predict(
    sources: Path | Sequence[Path],
    weights: Path,
    out: Path,
    threshold: float | None = None,
    device: str = "auto",
    recursive: bool = False,
    *,
    coco: bool = False,
    ground_truth: Path | None = None,
    draw: bool = True,
    batch_size: int = 8,
    camera: int | None = None,
    every: int = 1,
) -> str:
    """Detect objects on images, videos and a camera, and write the results as they come.

    Writes to `out`, under paths relative to the common folder of all files:

    * `detections.json`: a list of `{file, width, height, detections: [{box, label, class, score}]}`, boxes
      `x1, y1, x2, y2` in pixels of the image after its EXIF rotation, 0-based and half-open; or COCO results.
    * Each image with its boxes drawn.
    * Per video `NAME.jsonl`, a line `{frame, time, detections}` per frame, and `NAME.mp4` with the boxes drawn.

    An interrupted command (SIGINT, SIGTERM, SIGHUP) finishes the current image or frame and keeps the results.

    Args:
        sources: Images, videos, folders of images, patterns, or text files with one path per line.
        weights: Detector file.
        out: Folder for the results.
        threshold: Detections with a lower score are left out; None for 0.5, or 0 in COCO results.
        device: `auto`, `cpu` or `cuda`.
        recursive: Search sub-folders too.
        coco: Write COCO results, and no drawn images.
        ground_truth: COCO file whose image and category ids the COCO results get.
        draw: Write images and videos with their boxes drawn.
        batch_size: Images per forward pass.
        camera: Number of a camera.
        every: Detect on every n-th frame of a video.

    Raises:
        DataError: No images, or images that cannot be read (all are named; the others are processed).
        CheckpointError: `weights` is not a detector file.
    """
    sources = [sources] if isinstance(sources, Path) else sources
    if not sources and camera is None:
        raise DataError("no sources; name an image, a video, a folder, or --camera 0")
    files = find_inputs(sources, recursive, out) if sources else InputFiles([], [])
    if ground_truth is not None and not coco:
        raise DataError("--ground-truth gives ids of COCO results; add --format coco")
    if coco and (files.videos or camera is not None):
        raise DataError("COCO results are of images; leave out --format coco for videos and cameras")
    draw = draw and not coco
    targets = _targets(files, out, draw)
    if files.videos or camera is not None:
        from detection.video import pyav

        pyav(str(files.videos[0]) if files.videos else f"camera {camera}")  # named if it is missing
    if not weights.is_file():  # before torch is imported, which takes seconds
        raise CheckpointError(f"{weights} does not exist; train a detector first: dvc repro")
    from detection.predictor import load

    threshold = threshold if threshold is not None else 0.0 if coco else DEFAULT_THRESHOLD
    predictor = load(weights, device=device)
    ids = _coco_ids(files.images, predictor.classes, ground_truth) if coco else None
    out.mkdir(parents=True, exist_ok=True)
    with StopSignals() as stop:
        session = _Session(predictor, out, threshold, batch_size, draw, stop)
        if files.images:
            session.detect_on_images(files.images, targets, ids)
        for file in files.videos:
            session.detect_on_video(file, targets[file], every)
        if camera is not None:
            session.detect_on_video(camera, out / f"camera{camera}.mp4", every)
    if stop.signal is not None:
        log.info("interrupted; %s", session.summary())
        raise SystemExit(128 + stop.signal)
    summary = session.summary()
    if session.unread:
        log.info("%s", summary)
        count = len(files.images) + len(files.videos) + (camera is not None)
        raise DataError(f"{len(session.unread)} of {count} files cannot be read: {', '.join(session.unread)}")
    return summary


def _coco_ids(files: Sequence[Path], classes: Sequence[str], ground_truth: Path | None) -> "CocoIds":
    from detection.evaluation.coco_ids import CocoIds

    if ground_truth is None:
        return CocoIds.of_files(files, classes)
    return CocoIds.of_ground_truth(ground_truth, files, classes)


def _targets(files: InputFiles, out: Path, draw: bool) -> dict[Path, Path]:
    """Drawn image or video of each file, below `out`.

    Raises:
        DataError: A drawn image would overwrite a source.
    """
    paths = [*files.images, *files.videos]
    base = os.path.commonpath([file.absolute().parent for file in paths]) if paths else ""
    targets: dict[Path, Path] = {}
    for file in paths:
        target = out / file.absolute().relative_to(base)
        suffix = file.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            target = target if suffix == ".mp4" else target.with_name(f"{target.name}.mp4")
        elif suffix not in IMAGE_SUFFIXES or suffix in HEIF_SUFFIXES:
            target = target.with_name(f"{target.name}.png")
        targets[file] = target
    sources = {os.path.realpath(file) for file in paths}
    if draw and any(os.path.realpath(target) in sources for target in targets.values()):
        raise DataError(f"--out {out} is the folder of the images; name another folder, file names are kept")
    return targets


@dataclass(slots=True)
class _Session:
    """One call of the command: what it uses for every file, and what it has done."""

    predictor: "Predictor"
    out: Path
    threshold: float
    batch_size: int
    draw: bool
    stop: StopSignals
    """Checked after each image and frame, so that the files are complete and the summary counts what they hold."""
    unread: list[str] = field(default_factory=list)
    """Files that cannot be read, or only in part."""
    num_images: int = 0
    num_detections: int = 0
    """On images."""
    videos: list[str] = field(default_factory=list)
    """Summary of each video."""

    def detect_on_images(self, files: Sequence[Path], targets: Mapping[Path, Path], ids: "CocoIds | None") -> None:
        """Write the detections on images, as COCO results if `ids` are given, and the drawn images."""
        if ids is not None:
            (self.out / IDS).write_text(json.dumps(ids.describe(self.predictor.classes), indent=1), encoding="utf-8")
        with _JsonList(self.out / RESULT) as results:
            for file, image in self._on_each(files, {} if ids is None else ids.sizes):
                if self.draw:
                    self._draw(file, image, targets[file])
                if ids is not None:
                    results.extend(ids.results(file, image))
                else:
                    height, width = image.size
                    entry = {"file": str(file), "width": width, "height": height, "detections": image.to_json()}
                    results.extend([entry], indent=1)
                self.num_images, self.num_detections = self.num_images + 1, self.num_detections + len(image)
                names = (f"{name} {score:.2f}" for name, score in zip(image.names, image.scores, strict=True))
                found = ", ".join(names) if ids is None else f"{len(image)} detections"
                log.info("%s: %s", file, found or "no detections")
                if self.stop.signal is not None:
                    return

    def _on_each(
        self, files: Sequence[Path], sizes: Mapping[Path, tuple[int, int]]
    ) -> Iterator[tuple[Path, "ImageDetections"]]:
        """Detections of every file that can be read, in order; the others are logged and added to `unread`."""
        waiting: deque[Path] = deque()

        def tensors() -> Iterator["Tensor"]:
            for file in files:
                try:
                    image = _read(file, sizes.get(file), self.predictor.upright)
                except DataError as error:
                    self._skip(file, error)
                    continue
                waiting.append(file)
                yield image

        threshold, batch_size = self.threshold, self.batch_size
        for image in self.predictor.predict(tensors(), score_threshold=threshold, batch_size=batch_size):
            yield waiting.popleft(), image

    def _skip(self, name: Path | str, error: DataError | str) -> None:
        log.warning("%s", error)
        self.unread.append(str(name))

    def _draw(self, file: Path, image: "ImageDetections", target: Path) -> None:
        from detection.data.loading.image_io import decode

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._with_boxes(decode(file, upright=self.predictor.upright), image).save(target)
        except DataError as error:  # Pillow refuses a few files that torchvision decodes
            self._skip(file, error)

    def _with_boxes(self, image: "Image", detections: "ImageDetections") -> "Image":
        from detection.report.images.contact_sheet import draw_boxes

        return draw_boxes(image, detections.boxes, detections.labels, self.predictor.classes, detections.scores)

    def detect_on_video(self, source: Path | int, target: Path, every: int) -> None:
        """Write the detections on a video file, or on a camera by its number, and the video with boxes drawn."""
        from PIL.Image import fromarray

        from detection.video import Video, VideoWriter

        if self.stop.signal is not None:
            return
        try:
            video = Video.open(source) if isinstance(source, Path) else Video.open_camera(source)
        except DataError as error:
            self._skip(source if isinstance(source, Path) else f"camera {source}", error)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = target.with_suffix(".jsonl")
        frames, detections = 0, 0
        try:
            with ExitStack() as stack:
                stack.enter_context(video)
                file = stack.enter_context(lines.open("w", encoding="utf-8", buffering=1))
                writer = stack.enter_context(VideoWriter(target, video.rate / every)) if self.draw else None
                for frame, image in self._on_frames(video, every, 1 if isinstance(source, int) else self.batch_size):
                    if writer is not None:
                        writer.write(self._with_boxes(fromarray(frame.image), image), frame.time)
                    entry = {"frame": frame.number, "time": round(frame.time, 3), "detections": image.to_json()}
                    file.write(json.dumps(entry) + "\n")
                    frames, detections = frames + 1, detections + len(image)
                    if frames % FRAMES_PER_LINE == 0:
                        log.info("%s: %d frames, %.1f s, %d detections", video.name, frames, frame.time, detections)
                    if self.stop.signal is not None:
                        break
        finally:
            drawn = f", {target}" if self.draw else ""
            self.videos.append(f"{detections} detections on {frames} frames of {video.name}: {lines}{drawn}")
        if self.stop.signal is None and (problem := video.problem()):
            self._skip(video.name, f"{video.name}: {problem}")

    def _on_frames(self, video: "Video", every: int, batch_size: int) -> Iterator[tuple["Frame", "ImageDetections"]]:
        """Detections on every n-th frame, batch by batch."""
        frames = video.frames(every)
        while batch := list(islice(frames, batch_size)):
            images = (frame.image for frame in batch)
            found = self.predictor.predict(images, score_threshold=self.threshold, batch_size=batch_size)
            yield from zip(batch, found, strict=True)

    def summary(self) -> str:
        """Summary of the results so far."""
        parts = list(self.videos)
        if self.num_images or not parts:
            plural = "" if self.num_images == 1 else "s"
            images = f"{self.num_detections} detections on {self.num_images} image{plural}: {self.out / RESULT}"
            parts.insert(0, images + (f", annotated images in {self.out}" if self.draw else ""))
        return "\n".join(parts)


def _read(file: Path, size: tuple[int, int] | None, upright: bool) -> "Tensor":
    """Read an image as in training, or the other way if only then it has the size that its ground truth gives."""
    from detection.data.loading.image_io import read_image

    image = read_image(file, upright=upright)
    if size is not None and tuple(image.shape[1:]) == size[::-1] != size:
        image = read_image(file, upright=not upright)
    return image


class _JsonList:
    """JSON list on disk that is complete after every entry, also if the process is killed."""

    END = b"\n]\n"

    def __init__(self, path: Path) -> None:
        self._path, self._separator = path, b"\n"

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._file.write(b"[" + self.END)
        self._file.flush()
        return self

    def extend(self, values: Sequence[dict[str, Any]], indent: int | None = None) -> None:
        """Write entries."""
        if values:
            content = b",\n".join(json.dumps(value, indent=indent).encode() for value in values)
            self._file.seek(-len(self.END), os.SEEK_CUR)
            self._file.write(self._separator + content + self.END)
            self._file.flush()
            self._separator = b",\n"

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _run(args: argparse.Namespace) -> str:
    return predict(
        args.sources,
        args.weights,
        args.out,
        args.threshold,
        args.device,
        args.recursive,
        coco=args.format == "coco",
        ground_truth=args.ground_truth,
        draw=not args.no_images,
        batch_size=args.batch_size,
        camera=args.camera,
        every=args.every,
    )


COMMANDS = {"predict": Command(_add_arguments, _run)}
