"""The tutorial on experiments, from top to bottom in a small clone."""

import re

import pytest

from tests.docs.pages import ROOT, Outputs, Reader, small_clone
from tests.doctor import tool_exports


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Reader of the tutorial, with a clone of its own."""
    return Reader(small_clone(tmp_path_factory.mktemp("tutorial") / "clone", joined=True))


def test_experiments(trainer: Reader) -> None:
    folder = trainer.clone.folder
    tool_exports.save_image(folder / "photo.png", 0)
    tool_exports.save_image(folder / "photos/photo.png", 0)
    page = (ROOT / "docs/experiments.md").read_text()

    def write_space(_: Outputs) -> None:
        (space,) = re.findall(r"^```yaml\n(# search.yaml\n.*?)^```", page, re.M | re.S)
        assert "trials: 20 " in space
        (folder / "search.yaml").write_text(space.replace("trials: 20 ", "trials: 1 "))

    own = {
        "datasets.shapes.train=128": "datasets.shapes.train=32",
        "datasets.shapes.val=16": "datasets.shapes.val=4",
        "datasets.shapes.test=48": "datasets.shapes.test=12",
        "budgets.shapes.epochs=4": "budgets.shapes.epochs=1",
        "budgets.shapes.epochs=6": "budgets.shapes.epochs=3",
        "budgets.shapes.epochs=8": "budgets.shapes.epochs=2",
        "model=retinanet_resnet18": "model=retinanet_resnet18 -S models.retinanet_resnet18.fpn_channels=64",
        "step 40": "step 4",
        "--seeds 3": "--seeds 2",
        "seed=0,1": "seed=0",
        "presets.small.optimizer.lr=6e-4,2.4e-3": "presets.small.optimizer.lr=6e-4,1.2e-3",  # one of them is `base`
        "dvc queue start": "dvc queue start && wait_for_queue",
        "dvc queue start -j 2": "dvc queue start -j 2 && wait_for_queue",
    }
    outputs = trainer.follow("docs/experiments.md", own, {"detection search search.yaml": write_space})
    stopped = re.search(
        r"stopped by SIGINT at step (\d+), checkpoint saved; rerun", outputs["git checkout HEAD params.yaml"]
    )
    assert stopped
    resumed = outputs["dvc exp run -n middle -S budgets.shapes.epochs=6"]
    assert f"resuming at step {stopped[1]} of 24" in resumed
    assert "Ran experiment(s): middle" in resumed
    compared = outputs["detection compare base longer"].split()
    assert "recipe.epochs 1 2" in " ".join(compared)
    seeds = outputs["git checkout HEAD . && dvc checkout"]
    assert "0 of 2 seeds finished" in seeds
    assert "2 of 2 seeds finished" in seeds
    assert "2 vs 2" in seeds
    assert "longer is in the workspace" in outputs["detection apply longer"]
    promoted = outputs["detection promote longer --alias champion"]
    assert "longer is now version 1 of detector-shapes, and champion points at it" in promoted
    assert outputs["import mlflow"].split()[2].startswith("models:/")
    assert "photo.png" in outputs["import detection"]
    assert outputs["detection sync"].count("up to date") == 2
