"""What is known about an experiment outside MLflow: git, DVC, files. Imports no mlflow."""

import getpass
import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from detection.params import Params

NOT_CODE = (":!params.yaml", ":!dvc.lock", ":!reports")  # what differs between experiments by nature
PARAMS_YAML = Path("params.yaml")
FORBIDDEN = re.compile(r"[^\w\-. /]")
LONGEST = 200  # letters of a name; MLflow takes 250


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters of any script, digits, `_ - . /` and space, and a path as it is."""
    parts = FORBIDDEN.sub("_", name)[:LONGEST].split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The values that can be drawn, each under a name of its own: `C#` and `C+` are `C_` and `C__`."""
    named: dict[str, float] = {}
    for name, value in values.items():
        key = metric_name(name)
        while key in named:
            key += "_"
        named[key] = float(value)
    return {name: value for name, value in named.items() if math.isfinite(value)}


def experiment_name() -> str:
    """DVC's name of the experiment that runs; empty under `dvc repro` and by hand."""
    return os.environ.get("DVC_EXP_NAME", "")


def run_name(params: Params) -> str:
    """`DVC_EXP_NAME`, else `<model>-<dataset>-<short commit>`."""
    return experiment_name() or f"{params.model}-{params.dataset}-{commit()[:7] or 'nogit'}"


def run_params(params: Params) -> dict[str, str]:
    """Every param as text, written as `params.yaml` would: `null`, `true`, `[16, 22]`."""
    return as_text(params.flat())


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Param values as MLflow keeps them."""
    return {
        metric_name(key): value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }


def commit() -> str:
    """The commit an experiment stands on: its baseline, else HEAD; empty outside git."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or run_quiet("git", "rev-parse", "HEAD").strip()


def origin_tags(params: Params, stage: str) -> dict[str, str]:
    """Tags that lead from the row back to the experiment."""
    tags = {
        "model": params.model,
        "dataset": params.dataset,
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
        "dvc.exp_name": experiment_name(),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc.workspace": str(Path.cwd()),
        "git.dirty": str(bool(run_quiet("git", "status", "--porcelain", "--", ".", *NOT_CODE))).lower(),
        "mlflow.source.name": f"stages.{stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit(),
        "mlflow.user": _user(),
    }
    return {key: value for key, value in tags.items() if value} | _md5_tags(stage)


def environment_tags(made_in: Mapping[str, str]) -> dict[str, str]:
    """Tags of what `environment.json` says: which training it was, and what it was run with."""
    return {key if key == "training" else f"env.{key}": str(value) for key, value in made_in.items()}


def locked_md5() -> dict[str, str]:
    """The md5 of every output that `dvc.lock` knows, by path; empty without DVC."""
    stages = (_yaml("dvc.lock").get("stages") or {}).values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", []) if "md5" in out}


def training_files(*folders: Path) -> list[Path]:
    """The reports that a training's row holds, whoever makes the row."""
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]
    return [path for path in files if path.name != "run.json"]


def evaluation_key(params: Params) -> str:
    """A hash over what an evaluation is made of: its params, and every file that DVC says it depends on."""
    sha = hashlib.sha256(json.dumps(_section(params, "evaluate"), sort_keys=True).encode())
    for path in sorted({*_deps("evaluate"), "models/detector.pt"}):
        if Path(path).is_file():
            with open(path, "rb") as file:
                sha.update(path.encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]


def _section(params: Params, section: str) -> dict[str, Any]:
    return {key: value for key, value in params.flat().items() if key.startswith(f"{section}.")}


def _md5_tags(stage: str) -> dict[str, str]:
    """Of a stage's dependencies, those that another stage made: the upstream entries are up to date."""
    md5 = locked_md5()
    return {metric_name(f"dvc.md5.{path}"): md5[path] for path in _deps(stage) if path in md5}


def _deps(stage: str) -> list[str]:
    entry = (_yaml("dvc.yaml").get("stages") or {}).get(stage) or {}
    return [dep if isinstance(dep, str) else next(iter(dep)) for dep in entry.get("deps", [])]


def _yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return {}
    return yaml.safe_load(text) or {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""


def run_quiet(*command: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a program prints; empty where it is not there, or leaves with another exit code than `codes`."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode in codes else ""
