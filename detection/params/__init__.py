"""`params.yaml` as typed, validated, frozen objects; one module a section.

    params = load("params.yaml")
    params.recipe.optimizer.lr      # the chosen model's recipe, merged and scaled for the chosen dataset

Imports neither torch nor mlflow: an error about params must reach a person in half a second. The dataclasses
need nothing but Python; what reads YAML into them is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset
from detection.params.recipe import FasterRCNNRecipe, FCOSRecipe, Recipe, RetinaNetRecipe, SSDRecipe
from detection.params.recipe_base import Optimizer, Schedule
from detection.params.stages import Evaluate, Plots, Pretrain, Train

if TYPE_CHECKING:
    from detection.params.reader import Params, load

__all__ = [
    "CocoDataset",
    "Dataset",
    "Evaluate",
    "FCOSRecipe",
    "FasterRCNNRecipe",
    "Optimizer",
    "Params",
    "Plots",
    "Pretrain",
    "Recipe",
    "RetinaNetRecipe",
    "SSDRecipe",
    "Schedule",
    "ShapesDataset",
    "Train",
    "VocDataset",
    "load",
]


def __getattr__(name: str) -> Any:
    """`Params` and `load`, from where YAML is read."""
    if name not in ("Params", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detection.params import reader

    return getattr(reader, name)
