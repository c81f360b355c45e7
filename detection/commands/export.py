"""`detection export`: a detector as an ONNX file or a `.pt2` program that runs without this package."""

import argparse
import logging
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from detection.commands import Command, add_source
from detection.files import LockedTemporaryDirectory, md5
from detection.signals import stop_handler

if TYPE_CHECKING:
    from detection.export.checked import Options
    from detection.models.build import LoadedDetector


log = logging.getLogger(__name__)


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
    add(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of backbone and heads; default: %(default)s",
    )
    add("--core", action="store_true", help="write core.onnx too: the network without decoding and suppression")
    add("--evaluate", action="store_true", help="compare the AP on the test split too")


def export(source: str, out: Path, options: "Options") -> str:
    """Export a detector and check the result against it.

    Writes `out/detector.onnx` and `out/infer.py`, or `out/detector.pt2`. Nothing is written if the check fails.

    Args:
        source: A detector file, an experiment, an MLflow run, or a registry URI.
        out: Folder.
        options: What to write.

    Raises:
        DataError: No detector, no images for the check, or packages are missing.
        VerificationError: The exported file's detections differ.
    """
    from detection.export.checked import PACKAGES, require_packages, write_checked

    require_packages(*(PACKAGES if options.to == "onnx" else ()))
    loaded, origin = _load(source)
    lines, target = write_checked(loaded, out, options, origin)
    hint = f"; try it: python {out / 'infer.py'} IMAGE" if options.to == "onnx" else ""
    return "\n".join([*lines, f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB){hint}"])


def _load(source: str) -> tuple["LoadedDetector", dict[str, str]]:
    """The detector, and where it is from: `source`, and `run_id` of an experiment's MLflow run."""
    from detection.models.build import load_detector

    if Path(source).is_file() or source.endswith(".pt"):
        return load_detector(source), {"source": source, "md5": md5(source)} if Path(source).is_file() else {}
    from detection.experiments.find import find
    from detection.experiments.registry import extract_detector
    from detection.experiments.repository import Repository

    with LockedTemporaryDirectory("detection-export-") as folder:
        path = extract_detector(source, Path(folder))
        origin = {"source": source, "md5": md5(path)}
        if not source.startswith(("models:/", "runs:/")) and (run := find(source, Repository()).run_id()):
            origin["run_id"] = run
        return load_detector(path), origin


def _run(args: argparse.Namespace) -> str:
    from detection.export.checked import Options

    names = ("to", "resize", "precision", "core", "images", "evaluate")
    options = Options(**{name: getattr(args, name) for name in names})
    with stop_handler(_stop):
        return export(args.source, args.out, options)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwind, which deletes the temporary folder; the exit status is the shell's for the signal."""
    log.info("stopped by %s; nothing was written", signal.Signals(number).name)
    raise SystemExit(128 + number)


COMMANDS = {"export": Command(_add_arguments, _run)}
