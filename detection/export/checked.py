"""Exported files that are left only if they agree with the detector."""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from detection.data.loading.batch import collate
from detection.errors import DataError, DetectionError
from detection.export import agreement, core, onnx_file, torch_program
from detection.export.precision import CALIBRATION_IMAGES, TOLERANCES, Tolerance, convert
from detection.files import PREPARED, LockedTemporaryDirectory
from detection.models.build import LoadedDetector
from detection.text import did_you_mean

log = logging.getLogger(__name__)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHOICES = {"to": ("onnx", "pt2"), "resize": ("inside", "outside"), "precision": ("fp32", "fp16", "int8")}
"""Values of `Options`."""
CHECKED_IMAGES = 8
DISK_FULL_BYTES = 2**20
"""Free space below which a failed export is blamed on the disk."""
SCRIPT = Path(__file__).with_name("infer_script.txt")
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
        if not files:
            raise DataError(f"there are no images in {folder}")
    else:
        from detection.data.loading.prepared import Prepared

        if not (PREPARED / "meta.json").is_file():
            raise DataError("the exported file is checked on images, and none are prepared; name some: --images FOLDER")
        prepared = Prepared.load()
        split = next((split for split in ("val", "test", "train") if len(prepared.index(split))), None)
        if split is None:
            raise DataError(
                "the exported file is checked on images, and the prepared splits are empty; --images FOLDER"
            )
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
        CheckpointError: The prepared data, on which the AP is compared, has other classes.
        DataError: No images for the check, packages are missing, or `out` cannot be used.
        VerificationError: The exported file's detections differ; nothing is left.
    """
    require_packages(*(PACKAGES if options.to == "onnx" else ()))
    images = read_images(options.images, CALIBRATION_IMAGES if options.precision == "int8" else CHECKED_IMAGES)
    if loaded.tiles is not None:
        log.warning("the detector was trained on windows of %d px, and the file detects on one", loaded.tiles.size)
    if options.evaluate or (options.precision != "fp32" and options.images is None):
        agreement.evaluated_split(loaded)
    with _folder(out, f"detector.{options.to}") as folder:
        program = torch_program.trace(loaded, plain=options.to == "pt2")
        if options.to == "pt2":
            path, lines = _write_program(loaded, program, folder, options, images, origin or {})
        else:
            path, lines = _write_onnx(loaded, program, folder, options, images, origin or {})
            shutil.copy(SCRIPT, folder / "infer.py")
        for name in (*core.FILES, "infer.py"):
            if (file := folder / name).is_file():
                file.replace(out / name)
        return lines, path.replace(out / path.name)


@contextmanager
def _folder(out: Path, name: str) -> Iterator[Path]:
    """A temporary folder in `out`, deleted at the end, as is an `out` that was made for it and stays empty.

    Those that killed exports left in `out` are deleted first.

    Raises:
        DataError: `out` is a file, or has a folder, or somebody's `infer.py`, where a file has to go.
        OSError: The disk is full, or `out` cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder: --out FOLDER")
    if (out / name).is_dir():
        raise DataError(f"{out / name} is a folder; name another one: --out FOLDER")
    script = out / "infer.py"
    if script.is_file() and not script.read_bytes().startswith(SCRIPT.read_bytes()[:40]):
        raise DataError(f"{script} is not of an export and would be lost; name another folder: --out FOLDER")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with LockedTemporaryDirectory(".export-", out) as folder:
            try:
                yield Path(folder)
            except (DetectionError, OSError):
                raise
            except Exception as error:  # writers in C++ do not say why they failed
                if min(shutil.disk_usage(place).free for place in (folder, tempfile.gettempdir())) > DISK_FULL_BYTES:
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
    finally:
        if made and not any(out.iterdir()):
            out.rmdir()


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
