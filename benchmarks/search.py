"""Tree-structured Parzen estimator against random search: 20 trials each, three repetitions, on a small `shapes`.

    python -m benchmarks.search                           # a table and search.csv; repeated, it resumes
    python -m benchmarks.search --trials 8 --repetitions 1

Each trial trains the pyramid and the heads of RetinaNet in this process, on 64 images of 64 px, and is scored by its
best AP50 on 64 val images; the backbone is the frozen one of `make repro`. Studies and samplers are those of
`detection search`, without pruning, so that both samplers get the same budget of steps. The seed of the training is
that of the repetition.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from torch import Tensor

from detection.data.loading.loader import DetectionDataset, Loader
from detection.data.sources.dataset import RawDataset, read
from detection.evaluation.protocol import coco_metrics
from detection.experiments.search import sampler
from detection.experiments.search_space import Choices, Range, SearchFile, Space
from detection.files import BACKBONE
from detection.inference import run_detector
from detection.models.build import build_detector, without_weights
from detection.params import Optimizer, Recipe, ShapesDataset, load
from detection.training.common.optim import make_optimizer, set_learning_rate
from detection.weights import read_state_dict

IMAGES, SIDE, BATCH, STEPS, SCORED_EVERY = 64, 64, 8, 192, 64
DIMENSIONS: dict[str, Range | Choices] = {
    "lr": Range(low=1e-4, high=3e-2, log=True),
    "weight_decay": Range(low=1e-4, high=0.3, log=True),
    "warmup_steps": Range(low=0, high=64),
    "fpn_channels": Choices(choices=(32, 64)),
    "fg_iou": Range(low=0.3, high=0.7),
    "nms_threshold": Range(low=0.3, high=0.8),
}


def train(recipe: Recipe, backbone: dict[str, Tensor], values: Mapping[str, Any], data: RawDataset, seed: int) -> float:
    """Train with these values; return the best AP50 on val."""
    torch.manual_seed(seed)
    iou = {"fg_iou": values["fg_iou"], "bg_iou": min(0.4, values["fg_iou"])}
    recipe = recipe.update({"fpn_channels": values["fpn_channels"], "nms_threshold": values["nms_threshold"], **iou})
    detector: Any = build_detector(recipe, len(data.classes), backbone).train()
    optimizer = make_optimizer(detector, Optimizer(name="adamw", lr=values["lr"], weight_decay=values["weight_decay"]))
    dataset = DetectionDataset(data.splits["train"], data.root, recipe, train=True, seed=seed)
    loader, best, step = Loader(dataset, BATCH, 0, True), 0.0, 0
    for epoch in range(STEPS * BATCH // IMAGES):
        for batch in loader.epoch(epoch):
            set_learning_rate(optimizer, min((step + 1) / (values["warmup_steps"] + 1), 1.0))
            losses = detector.train()(batch.images, batch.targets)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        if step % SCORED_EVERY == 0:
            found = run_detector(detector, data.splits["val"], data.root, recipe, batch_size=16, device="cpu")
            best = max(best, float(coco_metrics.score(data.splits["val"], found, data.classes).stats["AP50"]))
    return best


def search(
    name: str, seed: int, trials: int, total: int, score: Callable[[Mapping[str, Any], int], float], storage: str
) -> list[dict[str, Any]]:
    """Run or resume a search of `total` trials up to one of them; return the trials with the best score so far."""
    settings = SearchFile(space={key: {} for key in DIMENSIONS}, sampler=name, seed=seed, trials=total)  # type: ignore[arg-type]
    space = Space(Path("search.yaml"), settings, DIMENSIONS, {})
    study = optuna.create_study(
        storage=storage, sampler=sampler(space), study_name=f"{name}-{seed}", direction="maximize", load_if_exists=True
    )
    for lost in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(lost.number, state=optuna.trial.TrialState.FAIL)
    while sum(one.state.name == "COMPLETE" for one in study.get_trials(deepcopy=False)) < trials:
        trial, started = study.ask(space.distributions()), time.monotonic()
        values = {key: DIMENSIONS[key].decode(one) for key, one in trial.params.items()}
        value = score(values, seed)
        study.tell(trial.number, value)
        seconds = time.monotonic() - started
        print(
            f"{name:6} {seed}  trial {trial.number:2}  AP50 {value:.4f}  {seconds:4.0f} s  {trial.params}", flush=True
        )
    rows: list[dict[str, Any]] = []
    best = 0.0
    for one in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))[:trials]:
        best = max(best, one.value or 0.0)
        rows.append({"sampler": name, "seed": seed, "trial": len(rows) + 1, "AP50": one.value, "best": best})
    return rows


def main() -> None:
    """Print the mean best score so far over the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("search.csv"), help="table; the studies are beside it")
    parser.add_argument("--backbone", type=Path, default=BACKBONE, help="weights that the stage pretrain has written")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    recipe = without_weights(load(model="retinanet_resnet18", dataset="shapes").recipe)
    recipe = recipe.update({"image_size": SIDE, "max_size": None, "augmentation": "flip", "batch_size": BATCH})
    recipe = recipe.update({"trainable_layers": 0, "bn": "frozen"})
    backbone = read_state_dict(args.backbone)
    with tempfile.TemporaryDirectory() as folder:
        spec = ShapesDataset(
            format="shapes", path=f"{folder}/shapes", image_size=SIDE, train=IMAGES, val=IMAGES, test=2
        )
        data, storage = read("search", spec), f"sqlite:///{args.out.resolve().with_suffix('.db')}"
        scores: dict[str, float] = {}

        def score(values: Mapping[str, Any], seed: int) -> float:
            """The first trials of TPE are those of random search: trained once."""
            key = f"{seed} {values}"
            if key not in scores:
                scores[key] = train(recipe, backbone, values, data, seed)
            return scores[key]

        rows = {}
        for seed in range(args.repetitions):
            for trial in range(1, args.trials + 1):  # alternating, so that an unfinished run compares equal budgets
                for name in ("tpe", "random"):
                    rows[name, seed] = search(name, seed, trial, args.trials, score, storage)
    table = pd.DataFrame([row for one in rows.values() for row in one])
    table.to_csv(args.out, index=False)
    print(table.groupby(["trial", "sampler"])["best"].mean().unstack().round(4).to_string())
    print(
        table.groupby(["sampler", "seed"])[["best", "AP50"]].agg({"best": "max", "AP50": "mean"}).round(4).to_string()
    )


if __name__ == "__main__":
    main()
