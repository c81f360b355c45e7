"""Names, tags and params of an MLflow run. Imports no mlflow."""

import getpass
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detection import pipeline
from detection.params import Params

TRAINING_ID = "training_id"
"""Tag and key of `environment.json`: id of a training, the same in every resume."""
FORBIDDEN = re.compile(r"[^\w\-. /]")
MAX_NAME_LENGTH = 200
"""Characters of a metric's name; MLflow accepts 250."""


def metric_name(name: str) -> str:
    """Metric name that MLflow accepts: letters of any script, digits, `_-. ` and `/` as separator."""
    parts = FORBIDDEN.sub("_", name)[:MAX_NAME_LENGTH].split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def metric_names(names: Iterable[str]) -> dict[str, str]:
    """Unique metric name per name: classes `C#` and `C+` become `C_` and `C__`."""
    unique: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        key = metric_name(name)
        while key in taken:
            key += "_"
        taken.add(key)
        unique[name] = key
    return unique


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Finite values by unique metric name."""
    names = metric_names(values)
    return {names[name]: float(value) for name, value in values.items() if math.isfinite(value)}


def run_name(params: Params) -> str:
    """`DVC_EXP_NAME`, else `<model>-<dataset>-<short commit>`."""
    return pipeline.experiment_name() or f"{params.model}-{params.dataset}-{pipeline.commit()[:7] or 'nogit'}"


def run_params(params: Params) -> dict[str, str]:
    """All params as text, spelled as in `params.yaml`: `null`, `true`, `[16, 22]`."""
    return as_text(params.flat())


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Param names and values as MLflow stores them."""
    return {
        metric_name(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }


def origin_tags(params: Params, stage: str) -> dict[str, str]:
    """Tags that lead from a run back to its experiment: model, dataset, DVC, git, md5 of the inputs."""
    changes = pipeline.run_quiet("git", "status", "--porcelain", "--", ".", *pipeline.NOT_CODE)
    tags = {
        "model": params.model,
        "dataset": params.dataset,
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
        "dvc.exp_name": pipeline.experiment_name(),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc.workspace": str(Path.cwd()),
        "git.dirty": str(bool(changes)).lower(),
        "mlflow.source.name": f"stages.{stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": pipeline.commit(),
        "mlflow.user": _user(),
    }
    return {key: value for key, value in tags.items() if value} | _md5_tags(stage)


def environment_tags(environment: Mapping[str, str]) -> dict[str, str]:
    """Tags of a training's `environment.json`: its id, and versions and devices as `env.<key>`."""
    return {key if key == TRAINING_ID else f"env.{key}": str(value) for key, value in environment.items()}


def _md5_tags(stage: str) -> dict[str, str]:
    """md5 of the stage's dependencies that earlier stages made; their `dvc.lock` entries are up to date."""
    md5 = pipeline.locked_md5()
    return {metric_name(f"dvc.md5.{path}"): md5[path] for path in pipeline.dependencies(stage) if path in md5}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""
