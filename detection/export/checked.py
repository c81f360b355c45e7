"""Exported files that are left only if they agree with the detector."""

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from detection.errors import DataError
from detection.export import agreement, onnx_file, torch_program
from detection.files import PREPARED
from detection.models.build import LoadedDetector

log = logging.getLogger(__name__)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED_IMAGES = 8


def require_packages(*names: str) -> None:
    """Check that optional packages are installed.

    Raises:
        DataError: One is missing.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise DataError(f"export needs the packages {', '.join(missing)}: pip install {' '.join(missing)}")


def read_images(folder: Path | None) -> list[Tensor]:
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
        files = [prepared.root / index[row].file for row in range(min(CHECKED_IMAGES, len(index)))]
    return [read_image(file, upright=True) for file in files[:CHECKED_IMAGES]]


def write_checked(
    loaded: LoadedDetector,
    out: Path,
    images: Sequence[Tensor],
    *,
    to: str = "onnx",
    resize: str = "inside",
    origin: Mapping[str, str] | None = None,
    evaluate: bool = False,
) -> tuple[list[str], Path]:
    """Write `detector.onnx` and `infer.py`, or `detector.pt2`.

    Args:
        loaded: Detector on the CPU.
        out: Folder.
        images: Images for the check, uint8 RGB [3, H, W].
        to: `onnx` or `pt2`.
        resize: `inside` or `outside` the ONNX file.
        origin: Further metadata: where the detector is from.
        evaluate: Compare the AP on the prepared test split as well.

    Returns:
        What the checks found, line by line, and the file.

    Raises:
        VerificationError: The exported file's detections differ; nothing is left.
    """
    if loaded.tiles is not None:
        log.warning("the detector was trained on windows of %d px, and the file detects on one", loaded.tiles.size)
    program = torch_program.trace(loaded, plain=to == "pt2")
    out.mkdir(parents=True, exist_ok=True)
    metadata = onnx_file.settings(loaded, resize if to == "onnx" else "outside", origin or {})
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
        path = Path(folder, "detector.pt2" if to == "pt2" else "detector.onnx")
        if to == "pt2":
            torch_program.write(program, path, metadata)
            exported: torch_program.ExportedDetector = torch_program.ProgramDetector(path)
        else:
            network = Path(folder, "network.onnx")
            onnx_file.write_network(program, network)
            exported = agreement.OnnxDetector(network)
        lines = [str(agreement.check(loaded, exported, images))]
        if evaluate:
            lines.append(agreement.compare_ap(loaded, exported))
        if to == "onnx":
            onnx_file.finish(network, path, metadata, loaded.recipe)
            if resize == "inside":
                lines.append(agreement.check_resize(loaded, path, images))
            shutil.copy(Path(__file__).with_name("infer_script.txt"), out / "infer.py")
        return lines, path.replace(out / path.name)
