"""Exported files that are left only if they agree with the detector."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from detection.data.loading.batch import collate
from detection.errors import DataError
from detection.export import agreement, core, onnx_file, torch_program
from detection.export.precision import CALIBRATION_IMAGES, TOLERANCES, Tolerance, convert
from detection.files import PREPARED
from detection.models.build import LoadedDetector
from detection.text import did_you_mean

log = logging.getLogger(__name__)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHOICES = {"to": ("onnx", "pt2"), "resize": ("inside", "outside"), "precision": ("fp32", "fp16", "int8")}
"""Values of `Options`."""
CHECKED_IMAGES = 8
RESIZE_UNMATCHED = 0.1
"""Accepted share of detections that differ with the resize inside."""


def require_packages(*names: str) -> None:
    """Check that optional packages are installed.

    Raises:
        DataError: One is missing.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise DataError(f"export needs the packages {', '.join(missing)}: pip install {' '.join(missing)}")


def read_images(folder: Path | None, count: int = CHECKED_IMAGES) -> list[Tensor]:
    """Images for the check: those of a folder, or of the prepared val split (test, train if it is empty).

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
        files = [prepared.root / index[row].file for row in range(min(count, len(index)))]
    return [read_image(file, upright=True) for file in files[:count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is exported, and how it is checked."""

    to: str = "onnx"
    """`onnx` or `pt2`."""
    resize: str = "inside"
    """`inside` or `outside` the ONNX file."""
    precision: str = "fp32"
    """`fp32`, `fp16` or `int8`."""
    core: bool = False
    """Write `core.onnx` too: the network without decoding and non-maximum suppression."""
    images: Path | None = None
    """Folder of images for the check; None for the prepared val split."""
    evaluate: bool = False
    """Compare the AP on the prepared test split; always done for fp16 and int8 unless `images` are named."""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise DataError(f"{name}: unknown value {value!r}; {did_you_mean(value, allowed)}")
        if self.to == "pt2" and (self.precision != "fp32" or self.core):
            raise DataError("fp16, int8 and the core are written as ONNX; leave out --to pt2")


def write_checked(
    loaded: LoadedDetector, out: Path, options: Options, origin: Mapping[str, str] | None = None
) -> tuple[list[str], Path]:
    """Write `detector.onnx` and `infer.py`, or `detector.pt2`.

    Args:
        loaded: Detector on the CPU.
        out: Folder.
        options: What to write.
        origin: Further metadata: where the detector is from.

    Returns:
        What the checks found, line by line, and the file.

    Raises:
        DataError: No images for the check, or packages are missing.
        VerificationError: The exported file's detections differ; nothing is left.
    """
    require_packages(*(PACKAGES if options.to == "onnx" else ()))
    images = read_images(options.images, CALIBRATION_IMAGES if options.precision == "int8" else CHECKED_IMAGES)
    if loaded.tiles is not None:
        log.warning("the detector was trained on windows of %d px, and the file detects on one", loaded.tiles.size)
    program = torch_program.trace(loaded, plain=options.to == "pt2")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        if options.to == "pt2":
            path, lines = _write_program(loaded, program, Path(folder), options, images, origin or {})
        else:
            path, lines = _write_onnx(loaded, program, Path(folder), options, images, origin or {})
            shutil.copy(Path(__file__).with_name("infer_script.txt"), out / "infer.py")
        for other in core.FILES:
            if (file := Path(folder, other)).is_file():
                file.replace(out / other)
        return lines, path.replace(out / path.name)


def _write_program(
    loaded: LoadedDetector,
    program: ExportedProgram,
    folder: Path,
    options: Options,
    images: Sequence[Tensor],
    origin: Mapping[str, str],
) -> tuple[Path, list[str]]:
    path = folder / "detector.pt2"
    torch_program.write(program, path, onnx_file.settings(loaded, "outside", "fp32", origin))
    exported = torch_program.ProgramDetector(path)
    lines = [str(agreement.check(loaded, exported, images))]
    if options.evaluate:
        lines.append(agreement.compare_ap(loaded, exported))
    return path, lines


def _write_onnx(
    loaded: LoadedDetector,
    program: ExportedProgram,
    folder: Path,
    options: Options,
    images: Sequence[Tensor],
    origin: Mapping[str, str],
) -> tuple[Path, list[str]]:
    network, path = folder / "network.onnx", folder / "detector.onnx"
    metadata = onnx_file.settings(loaded, options.resize, options.precision, origin)
    onnx_file.write_network(program, network)
    checked = images[:CHECKED_IMAGES]
    lines = [str(agreement.check(loaded, agreement.OnnxDetector(network), checked))]
    tolerance = Tolerance(unmatched=0.0, ap=0.0)
    if options.precision != "fp32":
        tolerance = TOLERANCES[options.precision]
        convert(network, options.precision, feeds(loaded, images))
        exported = agreement.OnnxDetector(network)
        lines.append(agreement.check_precision(loaded, exported, checked, options.precision, tolerance.unmatched))
    if options.evaluate or (options.precision != "fp32" and options.images is None):
        lines.append(agreement.compare_ap(loaded, agreement.OnnxDetector(network), tolerance.ap))
    onnx_file.finish(network, path, metadata, loaded.recipe)
    if options.resize == "inside":
        lines.append(agreement.check_resize(loaded, path, checked, RESIZE_UNMATCHED + tolerance.unmatched))
    if options.core:
        lines.append(core.write(loaded, folder, checked, onnx_file.settings(loaded, "outside", "fp32", origin)))
    return path, lines


def feeds(loaded: LoadedDetector, images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """Inputs of the network for each image."""
    for image in images:
        batch = collate([agreement.sample(image, loaded)], loaded.recipe)
        values = (batch.images, batch.sizes.resized, batch.sizes.original)
        yield {name: value.numpy() for name, value in zip(onnx_file.INPUTS, values, strict=True)}
