"""Give the backbone its weights: trained on crops of the training objects, published ones, or none."""

import csv
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detection.params import Params
from stages.entry import run

log = logging.getLogger(__name__)
REPORTS = Path("reports/pretrain")
COLUMNS = ("epoch", "lr", "loss", "accuracy", "val_accuracy")
RESULT = "backbone.pt"


def main() -> None:
    """Reads data/prepared; leaves models/backbone.pt and reports/pretrain."""
    import torch

    from detection import params as parameters
    from detection.training.checkpoint import Checkpoints, content_key

    params = parameters.load()
    backbone = params.recipe.backbone
    values = {"pretrain": asdict(params.pretrain), "backbone": backbone, "seed": params.seed}
    with Checkpoints("pretrain", content_key("pretrain", values)).held() as checkpoints:
        result = checkpoints.load(RESULT)
        if result:
            log.info("pretraining of %s: the finished one of the same content is reused", backbone)
        else:
            result = make(params)
            checkpoints.save(RESULT, result)
            checkpoints.mark_complete()
    Path("models").mkdir(exist_ok=True)
    torch.save({"backbone": backbone, "state_dict": result["state_dict"]}, "models/backbone.pt")
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "metrics.json").write_text(json.dumps(result["metrics"], indent=2))
    with (REPORTS / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(result["curve"])


def make(params: Params) -> dict[str, Any]:
    """Run the chosen method; returns weights, metrics and curve."""
    from detection.data.prepared import Prepared
    from detection.models.hardware import pick_device, pick_precision
    from detection.training import pretraining
    from detection.training.crops import cut_crops

    method, crops, backbone = params.pretrain.method, params.pretrain.crops, params.recipe.backbone
    if method == "none":
        return {"state_dict": None, "metrics": {"method": "none"}, "curve": []}
    if method == "published":
        state, name = pretraining.published_weights(backbone)
        return {"state_dict": state, "metrics": {"method": "published", "weights": name}, "curve": []}
    prepared = Prepared.load("data/prepared")
    prepared.check_unchanged("train")
    device = pick_device(params.train.device)
    classes, started = len(prepared.classes), time.monotonic()
    train, val = (
        cut_crops(prepared.index(split), prepared.root, crops, classes, params.seed)
        for split in ("train", "val")
    )
    log.info("pretraining %s on %d crops, %d to check", backbone, len(train), len(val))
    precision = pick_precision(params.train.precision, device)
    state, curve = pretraining.train_on_crops(
        backbone, train, val, classes, crops, device, precision, params.seed
    )
    metrics = {"method": "crops", "crops": len(train), "seconds": round(time.monotonic() - started, 1)}
    return {"state_dict": state, "metrics": metrics | curve[-1], "curve": curve}


if __name__ == "__main__":
    run(main)
