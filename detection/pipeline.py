"""What is known about an experiment outside MLflow: git, DVC, files. Imports no mlflow."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from detection.params import Params

NOT_CODE = (":!params.yaml", ":!dvc.lock", ":!reports")  # what differs between experiments by nature
PARAMS_YAML = Path("params.yaml")


def experiment_name() -> str:
    """DVC's name of the experiment that runs; empty under `dvc repro` and by hand."""
    return os.environ.get("DVC_EXP_NAME", "")


def commit() -> str:
    """The commit an experiment stands on: its baseline, else HEAD; empty outside git."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or run_quiet("git", "rev-parse", "HEAD").strip()


def locked_md5() -> dict[str, str]:
    """The md5 of every output that `dvc.lock` knows, by path; empty without DVC."""
    stages = (_yaml("dvc.lock").get("stages") or {}).values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", []) if "md5" in out}


def evaluation_key(params: Params) -> str:
    """A hash over what an evaluation is made of: its params, and every file that DVC says it depends on."""
    sha = hashlib.sha256(json.dumps(_section(params, "evaluate"), sort_keys=True).encode())
    for path in sorted({*dependencies("evaluate"), "models/detector.pt"}):
        if Path(path).is_file():
            with open(path, "rb") as file:
                sha.update(path.encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]


def _section(params: Params, section: str) -> dict[str, Any]:
    return {key: value for key, value in params.flat().items() if key.startswith(f"{section}.")}


def dependencies(stage: str) -> list[str]:
    """Files and folders that a stage of dvc.yaml depends on, code and data, as listed."""
    entry = (_yaml("dvc.yaml").get("stages") or {}).get(stage) or {}
    return [dep if isinstance(dep, str) else next(iter(dep)) for dep in entry.get("deps", [])]


def _yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return {}
    return yaml.safe_load(text) or {}


def run_quiet(*command: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a program prints; empty where it is not there, or leaves with another exit code than `codes`."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode in codes else ""
