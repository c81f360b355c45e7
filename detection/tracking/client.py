"""What is done to a row, whoever does it: make it, find it, fill in its params, tags and dataset inputs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection import pipeline
from detection.params import Params
from detection.tracking import naming
from detection.tracking.store import Store, process_tags

RUN_JSON = Path("reports/train/run.json")
PARAMS_PER_CALL = 100  # MLflow refuses more
SPLITS = ("train", "val")
TRAINING = "training"  # a tag
STANDS_FOR = "stands_for"  # a tag: the id that files give to this row, which the store did not have
RUN_ID = re.compile("[0-9a-f]{32}")


def write_run_id(path: Path, run_id: str | None, *, unsent: bool = False) -> None:
    """Write `{"run_id": ...}`; with `unsent`, an id that the row will stand for when the store is back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"run_id": run_id} | ({"unsent": True} if unsent else {})
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_run_id(path: Path) -> str | None:
    """The id that `write_run_id` wrote; None without a row."""
    run_id = _read(path).get("run_id")
    return str(run_id) if run_id else None


def is_unsent(path: Path) -> bool:
    """Whether the row could not be chosen when its id was written, as the store was away."""
    return bool(_read(path).get("unsent"))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content


def create_run(store: Store, params: Params, stage: str, tags: Mapping[str, str]) -> str:
    """Make a row with its name and tags; returns its id."""
    everything = naming.origin_tags(params, stage) | process_tags() | dict(tags)
    run = store.client.create_run(store.experiment, run_name=naming.run_name(params), tags=everything)
    return str(run.info.run_id)


def describe(store: Store, run_id: str, params: Params, trained: Mapping[str, str] | None = None) -> None:
    """Log the params and dataset inputs that a row lacks.

    Args:
        store: The store.
        run_id: The row.
        params: The experiment, all but `evaluate`.
        trained: Params as a training recorded them, where `params` may have changed since.
    """
    values = naming.run_params(params) | dict(trained or {})
    add_params(store, run_id, {key: values[key] for key in values if not key.startswith("evaluate.")})
    add_datasets(store, run_id, params, SPLITS)


def find_training(store: Store, run_id: str | None, training: str | None) -> Any:
    """The row of a training by its id, or by its tag where the id was lost; None where there is none."""
    row = find_run(store, run_id)
    if row is None and training:
        found = store.client.search_runs([store.experiment], f"tags.{TRAINING} = '{training}'")
        row = found[0] if found else None
    return row


def latest_steps(row: Any) -> dict[str, int]:
    """The last step that a row has of each metric.

    MLflow keeps it, but has no public word for it; `get_metric_history` would read every point.
    """
    return {metric.key: metric.step for metric in row.data._metric_objs}


def find_run(store: Store, run_id: str | None) -> Any:
    """The row, or the one that was made in its place; None where the store knows neither."""
    from mlflow.exceptions import MlflowException

    if run_id is None or not RUN_ID.fullmatch(run_id):  # a name, which MLflow may refuse to look up as an id
        return None
    try:
        row = store.client.get_run(run_id)
        if row.info.lifecycle_stage == "active":
            return row
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    found = store.client.search_runs([store.experiment], f"tags.{STANDS_FOR} = '{run_id}'")
    return found[0] if found else None


def reopen(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set a row RUNNING in this process's name."""
    add_tags(store, run_id, process_tags() | dict(tags))  # first, or another process takes it for an orphan
    store.client.update_run(run_id, status="RUNNING")


def experiment_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The newest experiment's name, and all the names that share the row.

    Args:
        tags: Those that the row has.
    """
    before, now = tags.get("dvc.exp_name", ""), pipeline.experiment_name()
    if not now or now == before:
        return {}
    names = dict.fromkeys([*tags.get("dvc.exp_names", before).split(","), now])
    return {"dvc.exp_name": now, "dvc.exp_names": ",".join(name for name in names if name)}


def add_tags(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call."""
    from mlflow.entities import RunTag

    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def add_params(store: Store, run_id: str, params: Mapping[str, str]) -> None:
    """Log the params that the row does not have yet; MLflow never changes one."""
    from mlflow.entities import Param

    there = store.client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in there]
    for start in range(0, len(new), PARAMS_PER_CALL):
        store.client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])


def add_datasets(store: Store, run_id: str, params: Params, splits: tuple[str, ...]) -> None:
    """Log the splits that the row lacks as dataset inputs; the digest is DVC's md5 of the packed index."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    md5 = pipeline.locked_md5()
    there = {one.dataset.digest for one in store.client.get_run(run_id).inputs.dataset_inputs}
    inputs = []
    for split in splits:
        digest = md5.get(f"data/prepared/{split}.npz")
        if digest and digest not in there:
            source = json.dumps({"path": params.data.path, "format": params.data.format})
            dataset = Dataset(name=params.dataset, digest=digest, source_type="local", source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    if inputs:
        store.client.log_inputs(run_id, datasets=inputs)


def training_files(*folders: Path) -> list[Path]:
    """Files of the reports that a training's run stores; `run.json` is left out."""
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]
    return [path for path in files if path.name != RUN_JSON.name]
