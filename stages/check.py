"""Check params.yaml, the dataset's and the weights' files, before any other stage removes its outputs.

DVC runs this stage always, so that changed raw data, a changed weights file or a moved model alias is noticed.
"""

import logging
from dataclasses import asdict
from typing import Any

from detection import nodes, params
from detection.data.sources.fingerprint import fingerprint, last_listing
from detection.data.sources.layout import check_present
from detection.errors import DataError, DetectionError
from detection.files import PARAMS_YAML, RAW_DATA_JSON, RECIPE_JSON, WEIGHTS_JSON, dvc_root, sha256, write_json
from detection.pipeline import code_files, undo_hint
from stages.entry import run

log = logging.getLogger("check")
CODE_STAGES = ("prepare", "pretrain", "train", "evaluate")
"""Stages whose code must be the same on all machines that train together."""


def main() -> None:
    """Write what later stages depend on.

    data/raw_data.json, the fingerprint of the raw data, decides if `prepare` runs, data/recipe.json, the merged recipe,
    if `train` does, and data/weights.json if `pretrain` does.
    """
    try:
        loaded = params.load()
        nodes.check_batch(loaded.recipe.batch_size, loaded.train.devices)
        check_present(loaded.dataset, loaded.data)
        sources = {"backbone": _backbone_weights(loaded.pretrain), "start": _start(loaded)}
        raw_data, changes = fingerprint(loaded.dataset, loaded.data, loaded.prepare.checks)
        _compare_nodes(loaded, raw_data)
    except DetectionError as error:
        raise type(error)(f"{error}{undo_hint()}") from None
    if changes:
        log.info("%s: raw data changed since the last check: %s", loaded.dataset, changes)
    write_json(RAW_DATA_JSON, {"fingerprint": raw_data})
    write_json(RECIPE_JSON, asdict(loaded.recipe))
    write_json(WEIGHTS_JSON, sources)


def _compare_nodes(loaded: params.Params, raw_data: str) -> None:
    """Compare code, params and raw data of the machines that train together."""
    if nodes.from_environment():
        files = {"params.yaml": PARAMS_YAML} | {str(file): file for file in code_files(CODE_STAGES)}
        inputs = {"raw data": raw_data} | {name: sha256(file) for name, file in files.items()}
        nodes.compare(inputs, last_listing(loaded.data, loaded.prepare.checks), log.info)


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


if __name__ == "__main__":
    run(main)
