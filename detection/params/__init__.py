"""`params.yaml` as typed, validated, frozen dataclasses.

    params = load("params.yaml")
    params.recipe.optimizer.lr      # the selected model's recipe, merged for the selected dataset

Imports neither torch nor mlflow, so that an error in `params.yaml` is shown within half a second. The
dataclasses need the standard library only; the YAML reader is imported on first use.
"""

from typing import TYPE_CHECKING, Any

from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset, YoloDataset
from detection.params.recipe import FasterRCNNRecipe, FCOSRecipe, Recipe, RetinaNetRecipe, SSDRecipe
from detection.params.recipe_base import Optimizer, Schedule
from detection.params.stages import Evaluate, Plots, Pretrain, Train

if TYPE_CHECKING:
    from detection.params.reader import Params, load

__all__ = [
    "CocoDataset", "Dataset", "Evaluate", "FCOSRecipe", "FasterRCNNRecipe", "Optimizer", "Params", "Plots",
    "Pretrain", "Recipe", "RetinaNetRecipe", "SSDRecipe", "Schedule", "ShapesDataset", "Train",
    "VocDataset", "YoloDataset", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import `Params` and `load` on first use."""
    if name not in ("Params", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detection.params import reader

    return getattr(reader, name)
