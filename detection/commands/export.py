"""`detection export`: a detector as an ONNX file or a `.pt2` program that runs without this package."""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands import Command
from detection.errors import DataError
from detection.files import DETECTOR, PREPARED, md5

if TYPE_CHECKING:
    from torch import Tensor

    from detection.models.build import LoadedDetector

log = logging.getLogger(__name__)
CHECKED_IMAGES = 8


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        default=str(DETECTOR),
        help="detector file, experiment, MLflow run, or models:/NAME@ALIAS; default: %(default)s",
    )
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
    from detection.export.onnx_file import require_packages

    require_packages(*(("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ()))
    loaded, origin = _load(source)
    if loaded.tiles is not None:
        log.warning(
            "the detector was trained on windows of %d px: the exported file detects on one window", loaded.tiles.size
        )
    pictures = _check_images(images)
    from detection.export import agreement, onnx_file, torch_program

    program = torch_program.trace(loaded, plain=to == "pt2")
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        if to == "pt2":
            path = Path(folder, "detector.pt2")
            torch_program.write(program, path, onnx_file.settings(loaded, "outside", origin))
            lines.append(str(agreement.check(loaded, torch_program.ProgramDetector(path), pictures)))
        else:
            network, path = Path(folder, "network.onnx"), Path(folder, "detector.onnx")
            onnx_file.write_network(program, network)
            runtime = agreement.OnnxDetector(network)
            lines.append(str(agreement.check(loaded, runtime, pictures)))
            if evaluate:
                lines.append(agreement.compare_ap(loaded, runtime))
            onnx_file.finish(network, path, onnx_file.settings(loaded, resize, origin), loaded.recipe)
            if resize == "inside":
                lines.append(agreement.check_resize(loaded, path, pictures))
            shutil.copy(Path(onnx_file.__file__).with_name("infer_script.txt"), out / "infer.py")
        target = out / path.name
        path.replace(target)
    size = target.stat().st_size / 1e6
    lines.append(
        f"wrote {target} ({size:.1f} MB)" + (f"; try it: python {out / 'infer.py'} IMAGE" if to == "onnx" else "")
    )
    return "\n".join(lines)


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


def _check_images(folder: Path | None) -> list["Tensor"]:
    """Images for the check.

    Raises:
        DataError: There are none.
    """
    from detection.data.loading.image_io import read_image
    from detection.input_files import find_inputs

    if folder is not None:
        files = find_inputs([folder]).images
    else:
        from detection.data.loading.prepared import Prepared

        if not (PREPARED / "meta.json").is_file():
            raise DataError("the exported file is checked on images, and none are prepared; name some: --images FOLDER")
        prepared = Prepared.load()
        split = next(split for split in ("val", "test", "train") if len(prepared.index(split)))
        prepared.check_unchanged(split)
        index = prepared.index(split)
        files = [prepared.root / index[row].file for row in range(min(CHECKED_IMAGES, len(index)))]
    return [read_image(file, upright=True) for file in files[:CHECKED_IMAGES]]


def _run(args: argparse.Namespace) -> str:
    return export(args.source, args.to, args.out, args.resize, args.images, args.evaluate)


COMMANDS = {"export": Command(_add_arguments, _run)}
