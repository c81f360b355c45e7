"""A detector as MLflow stores and serves it: a folder with weights, code, signature, input example and requirements."""

import importlib.metadata
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

import detection

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

LOADER = "detection.tracking.pyfunc"
"""Module that loads the model; not imported here, since it imports torch."""
THRESHOLD = 0.5
"""Score threshold where a request names none."""
CODE = "code/detection.zip"
"""This package in the model's folder: one file to send instead of 150, which Python imports from as it is."""
REQUIREMENTS = ("mlflow", "msgspec", "numpy", "pandas", "pillow", "torch", "torchvision")


def write_model_folder(
    folder: Path, detector: Path, *, run_id: str | None, model_id: str | None, example: bytes | None
) -> None:
    """Write a pyfunc model into a new folder.

    Args:
        folder: Folder to create.
        detector: Detector file.
        run_id: MLflow run of the training.
        model_id: LoggedModel that the folder is for.
        example: Image file, the input example; None: a gray image.
    """
    import pandas as pd

    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")  # the model has its own requirements
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow 3.17 warns of its own types and of its own use of pandas 3
        import mlflow.pyfunc
        from mlflow.models import Model

        versions = ((name, importlib.metadata.version(name)) for name in REQUIREMENTS)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=LOADER,
            data_path=str(detector),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=_signature(THRESHOLD),
            input_example=(pd.DataFrame({"image": [example or _gray_image()]}), {"threshold": THRESHOLD}),
            pip_requirements=[f"{name}=={version.partition('+')[0]}" for name, version in versions],  # not +cpu
            model_config={"device": "auto"},
        )
        _write_code(folder / CODE)
        model = Model.load(folder)
        model.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.CODE] = CODE
        model.save(folder / "MLmodel")


def _write_code(path: Path) -> None:
    """Write this package's modules as a zip file."""
    package = Path(detection.__file__).parent
    path.parent.mkdir()
    with ZipFile(path, "w", ZIP_DEFLATED, strict_timestamps=False) as archive:
        for file in sorted(package.rglob("*.py")):
            archive.write(file, Path(package.name, file.relative_to(package)))


def _signature(threshold: float) -> "ModelSignature":
    """Input: bytes of image files, and a score threshold. Output: image sizes and detections."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    fields = {"box": Array(DataType.double), "label": DataType.long, "class": DataType.string, "score": DataType.double}
    detections = Object([Property(name, dtype) for name, dtype in fields.items()])
    outputs: list[Any] = [ColSpec(DataType.long, "width"), ColSpec(DataType.long, "height")]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([*outputs, ColSpec(Array(detections), "detections")]),
        params=ParamSchema([ParamSpec("threshold", DataType.double, threshold)]),
    )


def _gray_image() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), "gray").save(buffer, format="PNG")
    return buffer.getvalue()
