"""A detector as an MLflow model: a folder with weights, code, signature, example, requirements and card."""

import importlib.metadata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detection
from detection.experiments.pyfunc import THRESHOLD, _load_pyfunc

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CARD = "model_card.md"
REQUIREMENTS = ("mlflow", "msgspec", "numpy", "pandas", "pillow", "torch", "torchvision")


def save(folder: Path, detector: Path, picture: bytes, card: str, run_id: str) -> None:
    """Write the model.

    Args:
        folder: Does not exist yet.
        detector: The detector's file.
        picture: A picture file, the input example.
        card: The model card, markdown.
        run_id: The row it comes from.
    """
    import pandas as pd

    with warnings.catch_warnings():  # MLflow 3.17 warns of its own types, and of its own use of pandas 3
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        from mlflow.models import Model

        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=_load_pyfunc.__module__,
            data_path=str(detector),
            code_paths=[str(Path(detection.__file__).parent)],
            mlflow_model=Model(run_id=run_id),
            signature=signature(),
            input_example=(pd.DataFrame({"image": [picture]}), {"threshold": THRESHOLD}),
            pip_requirements=requirements(),
            model_config={"device": "auto"},
        )
    (folder / CARD).write_text(card, encoding="utf-8")


def signature() -> "ModelSignature":
    """Bytes of picture files and a threshold in, sizes and detections out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    detections = Object(
        [
            Property("box", Array(DataType.double)),
            Property("label", DataType.long),
            Property("class", DataType.string),
            Property("score", DataType.double),
        ]
    )
    outputs: list[Any] = [
        ColSpec(DataType.long, "width"),
        ColSpec(DataType.long, "height"),
        ColSpec(Array(detections), "detections"),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("threshold", DataType.double, THRESHOLD)]),
    )


def requirements() -> list[str]:
    """What the detector needs, in the versions that are installed here (without a build's `+cpu`)."""
    versions = ((name, importlib.metadata.version(name)) for name in REQUIREMENTS)
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions]
