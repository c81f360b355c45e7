"""`detection export`: a detector as an ONNX file or a `.pt2` program that runs without this package."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands import Command, add_source
from detection.files import md5

if TYPE_CHECKING:
    from detection.models.build import LoadedDetector


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_source(parser)
    add("--to", choices=("onnx", "pt2"), default="onnx", help="default: %(default)s")
    add("--out", type=Path, default=Path("export"), help="folder; default: %(default)s")
    add(
        "--resize",
        choices=("inside", "outside"),
        default="inside",
        help="inside: the file takes images of any size; outside: images that the caller resizes; default: %(default)s",
    )
    add("--images", type=Path, metavar="FOLDER", help="images to check the file on; default: the prepared val split")
    add("--evaluate", action="store_true", help="compare the AP on the test split too")


def export(
    source: str, to: str, out: Path, resize: str = "inside", images: Path | None = None, evaluate: bool = False
) -> str:
    """Export a detector and check the result against it.

    Writes `out/detector.onnx` and `out/infer.py`, or `out/detector.pt2`. Nothing is written if the check fails.

    Args:
        source: A detector file, an experiment, an MLflow run, or a registry URI.
        to: `onnx` or `pt2`.
        out: Folder.
        resize: `inside` or `outside` the ONNX file.
        images: Folder of images for the check; None for the prepared val split.
        evaluate: Compare the AP on the prepared test split as well.

    Raises:
        DataError: No detector, no images for the check, or packages are missing.
        VerificationError: The exported file's detections differ.
    """
    from detection.export.checked import PACKAGES, read_images, require_packages, write_checked

    require_packages(*(PACKAGES if to == "onnx" else ()))
    loaded, origin = _load(source)
    lines, target = write_checked(
        loaded, out, read_images(images), to=to, resize=resize, origin=origin, evaluate=evaluate
    )
    hint = f"; try it: python {out / 'infer.py'} IMAGE" if to == "onnx" else ""
    return "\n".join([*lines, f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB){hint}"])


def _load(source: str) -> tuple["LoadedDetector", dict[str, str]]:
    """The detector, and where it is from: `source`, and `run_id` of an experiment's MLflow run."""
    from detection.models.build import load_detector

    if Path(source).is_file() or source.endswith(".pt"):
        return load_detector(source), {"source": source, "md5": md5(source)} if Path(source).is_file() else {}
    from detection.experiments.find import find
    from detection.experiments.registry import extract_detector
    from detection.experiments.repository import Repository

    with tempfile.TemporaryDirectory(prefix="detection-export-") as folder:
        path = extract_detector(source, Path(folder))
        origin = {"source": source, "md5": md5(path)}
        if not source.startswith(("models:/", "runs:/")) and (run := find(source, Repository()).run_id()):
            origin["run_id"] = run
        return load_detector(path), origin


def _run(args: argparse.Namespace) -> str:
    return export(args.source, args.to, args.out, args.resize, args.images, args.evaluate)


COMMANDS = {"export": Command(_add_arguments, _run)}
