"""Training small enough for a test: twelve generated images, a ResNet-18 at 64 px."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader
from detection.data.sources.dataset import read
from detection.models.build import build_detector, without_weights
from detection.models.detector import Detector
from detection.params import Recipe, ShapesDataset, Train, load
from detection.signals import StopSignals
from detection.tracking.run import NoRun
from detection.training.common.checkpoint import Checkpoints
from detection.training.loop import TrainingJob, fit
from detection.training.validation import Validator

EPOCHS, BATCH, IMAGES = 3, 4, 12
STEPS = EPOCHS * IMAGES // BATCH


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twelve training and four val images: splits, root and class names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(tmp_path_factory.mktemp("raw")))
        spec = ShapesDataset(format="shapes", path="shapes", image_size=64, train=IMAGES, val=4, test=4)
        return read("tiny", spec)


@pytest.fixture
def recipe() -> Recipe:
    return small_recipe()


def small_recipe() -> Recipe:
    recipe = without_weights(load(model="retinanet_resnet18", dataset="shapes").recipe)
    schedule = replace(recipe.schedule, warmup_iterations=2)
    sizes = {"image_size": 64, "max_size": None, "epochs": EPOCHS, "batch_size": BATCH, "fpn_channels": 32}
    return recipe.update({**sizes, "schedule": schedule})


@pytest.fixture
def make_job(tiny: Any, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build a job, as a restarted process does: same params, same checkpoint folder."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return job_maker(tiny, recipe, tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """Finished training that was never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        job: TrainingJob = job_maker(tiny, small_recipe(), folder)()
        with job.checkpoints.locked():
            fit(job, NoRun(), StopSignals())
    return job


def job_maker(tiny: Any, recipe: Recipe, folder: Path) -> Any:
    torch.set_num_threads(1)

    def make(key: str = "key", train: Index | None = None, recipe: Recipe = recipe, **settings: Any) -> TrainingJob:
        torch.manual_seed(0)
        detector: Detector = build_detector(recipe, len(tiny.classes), None).train()
        dataset = DetectionDataset(train or tiny.splits["train"], tiny.root, recipe, train=True, seed=0)
        return TrainingJob(
            detector=detector,
            recipe=recipe,
            settings=Train(precision="fp32", log_every=2, sample_every_epochs=0, **settings),
            loader=Loader(dataset, recipe.batch_size, workers=0, shuffle=True),
            validator=Validator(tiny.splits["val"], tiny.root, tiny.classes, recipe, "fp32"),
            device=torch.device("cpu"),
            precision=torch.float32,
            reports=folder / key / "reports",
            checkpoints=Checkpoints("train", key),
        )

    return make
