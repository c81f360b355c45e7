"""Check params.yaml, the dataset's and the weights' files, before any other stage removes its outputs.

DVC runs this stage always, so that a changed weights file or a moved model alias is noticed.
"""

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detection import params
from detection.data.sources.layout import check_present
from detection.errors import DataError, DetectionError
from detection.files import RECIPE_JSON, WEIGHTS_JSON, dvc_root, sha256, write_json
from stages.entry import run

RESULT = Path("data/check.ok")


def main() -> None:
    """Write what later stages depend on.

    data/check.ok is constant; data/recipe.json, the merged recipe, decides if `train` runs, and data/weights.json if
    `pretrain` does.
    """
    try:
        loaded = params.load()
        check_present(loaded.dataset, loaded.data)
        sources = {"backbone": _backbone_weights(loaded.pretrain), "start": _start(loaded)}
    except DetectionError as error:
        raise type(error)(f"{error}{_undo_hint()}") from None
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("ok\n", encoding="utf-8")
    write_json(RECIPE_JSON, asdict(loaded.recipe))
    write_json(WEIGHTS_JSON, sources)


def _backbone_weights(pretrain: params.Pretrain) -> dict[str, Any]:
    """Method of pretraining, and the hash of a weights file; no path, so that moving the file changes nothing."""
    if pretrain.method != "file":
        return {"method": pretrain.method}
    path = dvc_root() / str(pretrain.file)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"params.yaml: pretrain.file: {path} {problem}; set it to a weights file (.pth, .pt, .safetensors), "
            "absolute or relative to the repository"
        )
    return {"method": "file", "sha256": sha256(path)}


def _start(loaded: params.Params) -> dict[str, Any]:
    """Resolved source of start weights."""
    if loaded.start.from_ is None:
        return {"from": None}
    from detection.experiments.start_source import resolve  # imports what finds experiments and runs

    return resolve(loaded)


def _undo_hint() -> str:
    """Hint for an invalid value set with `-S`, which stays in params.yaml and breaks the next command too."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    try:
        changed = subprocess.run(command, check=False, capture_output=True).returncode == 1
    except OSError:  # git is not installed
        changed = False
    return "; `git checkout HEAD params.yaml` undoes the changes of -S" if changed else ""


if __name__ == "__main__":
    run(main)
