"""Check params.yaml, the dataset's and the weights' files, before any other stage removes its outputs.

DVC runs this stage always, so that changed raw data, a changed weights file or a moved model alias is noticed.
"""

import logging
from dataclasses import asdict
from typing import Any

from detection import nodes, params
from detection.data.sources.fingerprint import fingerprint
from detection.data.sources.layout import check_present
from detection.errors import DataError, DetectionError
from detection.files import RAW_DATA_JSON, RECIPE_JSON, WEIGHTS_JSON, dvc_root, sha256, write_json
from detection.pipeline import undo_hint
from stages.entry import run

log = logging.getLogger("check")


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
    except DetectionError as error:
        raise type(error)(f"{error}{undo_hint()}") from None
    if changes:
        log.info("%s: raw data changed since the last check: %s", loaded.dataset, changes)
    write_json(RAW_DATA_JSON, {"fingerprint": raw_data})
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


if __name__ == "__main__":
    run(main)
