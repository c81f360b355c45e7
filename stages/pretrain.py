"""Make the initial weights: of the backbone (crops, an ImageFolder, published, a file, none), or of a detector."""

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from detection.experiments.start_source import resolved
from detection.files import BACKBONE, REPORTS_PRETRAIN, START, write_json
from detection.params import Params, load
from stages.entry import run

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
RESULT_FILE = "backbone.pt"
"""Result of a finished pretraining in its checkpoint folder."""


def main() -> None:
    """Read data/prepared or DATA_ROOT/imagenet, write models/backbone.pt, models/start.pt and reports/pretrain."""
    params = load()
    if resolved()["from"] is not None:  # the start weights hold a backbone
        params = replace(params, pretrain=replace(params.pretrain, method="none"))
    from detection import launch
    from detection.device import pick_device, pick_devices

    device = pick_device(params.train.device)
    devices, alone = 1, params.pretrain.method != "imagefolder"  # the other methods take minutes on one device
    if not alone:
        devices = pick_devices(params.train.devices, device, params.pretrain.imagefolder.batch_size)
    outputs = (BACKBONE, START, REPORTS_PRETRAIN)
    launch.run(devices, "stages.pretrain", device, partial(pretrain, params, device), outputs, alone=alone)


def pretrain(params: Params, device: "torch.device") -> None:
    """Make the weights in this process, alone or as one of several ranks, or reuse finished ones."""
    from detection import distributed, launch, process_group
    from detection.experiments.start_weights import fetch_start
    from detection.files import save_weights
    from detection.training.common.checkpoint import Checkpoints, content_key
    from detection.training.common.environment import determinism
    from detection.training.common.history import CsvTable
    from detection.training.pretrain.classifier import COLUMNS
    from detection.training.pretrain.methods import describe_start, select_method

    backbone, method = params.recipe.backbone, params.pretrain.method
    inputs, make_weights = select_method(params, device)
    process_group.join(device, "pretrain")
    source = resolved()
    origin = describe_start(params) if source["from"] is None else f"the detector {source['from']}"
    log.info("backbone %s from %s", backbone, origin)
    values = {"method": method, "backbone": backbone, "seed": params.seed, **inputs}
    key = content_key("pretrain", values, without=None if method == "crops" else "data")
    with (
        launch.reports_folder(REPORTS_PRETRAIN) as reports,
        determinism(params.train.determinism),
        Checkpoints("pretrain", key).locked() as checkpoints,
    ):
        result = checkpoints.load(RESULT_FILE)
        if result and method != "none":
            log.info("pretraining of %s: reusing the finished result of the same content", backbone)
        if not result:
            result = make_weights(checkpoints, reports / "curves.csv")
            checkpoints.save(RESULT_FILE, result)
            checkpoints.mark_complete()
        if distributed.is_main():
            BACKBONE.parent.mkdir(exist_ok=True)
            fetch_start(source).save(START)
            save_weights(BACKBONE, {"backbone": backbone, "state_dict": result["state_dict"]})
            CsvTable(reports / "curves.csv", COLUMNS, result["curve"])
            write_json(reports / "metrics.json", {**result["metrics"], "start": origin})


if __name__ == "__main__":
    run(main)
