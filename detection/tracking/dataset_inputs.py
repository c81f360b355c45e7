"""Dataset inputs of a run: name, digest, source, profile and schema of each split, as MLflow shows and reads them."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from detection import pipeline
from detection.files import PREPARED, REPORTS_DATASET, data_root, read_json
from detection.params import Params
from detection.tracking.store import Store

SPLITS = ("train", "val", "test")
"""Values of MLflow's tag `mlflow.data.context`."""
PROFILED = ("images", "objects", "empty_images", "objects_by_class")


def split_digest(split: str) -> str | None:
    """Digest of a split's dataset: md5 of its packed index in dvc.lock; None without DVC."""
    return pipeline.locked_md5().get(f"{PREPARED}/{split}.npz")


def log_datasets(store: Store, run: Any, params: Params, splits: Iterable[str]) -> None:
    """Log the dataset inputs that a run lacks.

    Args:
        store: The store.
        run: The run as it was found.
        params: The experiment.
        splits: Names out of `SPLITS`.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    logged = {one.dataset.digest for one in (run.inputs.dataset_inputs if run.inputs else ())}
    card, inputs = read_json(REPORTS_DATASET / "card.json"), []
    source = json.dumps({"uri": str(data_root().resolve() / params.data.path)})
    for split in splits:
        digest = split_digest(split)
        if not digest or digest in logged:
            continue
        about = {"split": split, "format": params.data.format, "license": params.data.license}
        about |= {key: value for key, value in card.get("splits", {}).get(split, {}).items() if key in PROFILED}
        dataset = Dataset(
            name=params.dataset,
            digest=digest,
            source_type="local",
            source=source,
            schema=_schema(),
            profile=json.dumps({key: value for key, value in about.items() if value is not None}),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    if inputs:
        store.client.log_inputs(run.info.run_id, datasets=inputs)


@cache
def _schema() -> str:
    """Columns of a detection dataset: an image file, and box, class and marks of each of its objects."""
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Object, Property

    fields = {"box": Array(DataType.double), "class": DataType.string, "difficult": DataType.boolean}
    fields |= {"crowd": DataType.boolean}
    objects = Array(Object([Property(name, dtype) for name, dtype in fields.items()]))
    columns: list[Any] = [ColSpec(DataType.binary, "image"), ColSpec(objects, "objects")]
    return json.dumps({"mlflow_colspec": Schema(columns).to_dict()})
