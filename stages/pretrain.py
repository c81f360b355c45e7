"""Give the backbone its weights: trained on crops or on a folder of pictures, published ones, or none."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detection.params import Params, load
from stages.entry import run

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
REPORTS, BACKBONE = Path("reports/pretrain"), Path("models/backbone.pt")
RESULT = "backbone.pt"


def main() -> None:
    """Reads data/prepared or DATA_ROOT/imagenet; leaves models/backbone.pt and reports/pretrain."""
    params = load()
    from detection.device import pick_device, pick_devices
    from detection.training import launch

    device = pick_device(params.train.device)
    many = params.pretrain.method == "imagefolder"  # the others take minutes
    batch_size = params.pretrain.imagefolder.batch_size
    devices = pick_devices(params.train.devices, device, batch_size) if many else 1
    launch.run(devices, "stages.pretrain", device, partial(pretrain, params, device))


def pretrain(params: Params, device: "torch.device") -> None:
    """Make the weights in this process, alone or as one of several, or take those that were made before."""
    from detection import distributed
    from detection.files import save_weights
    from detection.training import launch
    from detection.training.checkpoint import content_key
    from detection.training.environment import determinism
    from detection.training.history import Table
    from detection.training.pretrain.classifier import COLUMNS
    from detection.training.pretrain.methods import choose

    backbone = params.recipe.backbone
    method = params.pretrain.method
    reads, make = choose(params, device)
    values = {"method": method, "backbone": backbone, "seed": params.seed, **reads}
    key = content_key("pretrain", values, without=None if method == "crops" else "data")
    with (
        launch.folder(REPORTS) as reports,
        determinism(params.train.determinism),
        launch.checkpoints("pretrain", key).held() as checkpoints,
    ):
        result = checkpoints.load(RESULT)
        if result:
            log.info("pretraining of %s: the finished one of the same content is reused", backbone)
        else:
            result = make(checkpoints, reports / "curves.csv")
            checkpoints.save(RESULT, result)
            checkpoints.mark_complete()
        if distributed.is_main():
            BACKBONE.parent.mkdir(exist_ok=True)
            save_weights(BACKBONE, {"backbone": backbone, "state_dict": result["state_dict"]})
            Table(reports / "curves.csv", COLUMNS, result["curve"])
            (reports / "metrics.json").write_text(json.dumps(result["metrics"], indent=2))


if __name__ == "__main__":
    run(main)
