"""`params.yaml` as typed, validated, frozen objects; one module a section.

    params = load("params.yaml")
    params.recipe.optimizer.lr      # the chosen model's recipe, merged and scaled for the chosen dataset

Imports neither torch nor mlflow: an error about params must reach a person in half a second.
"""

from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset
from detection.params.load import Params, load
from detection.params.recipe import (
    FasterRCNNRecipe,
    FCOSRecipe,
    Optimizer,
    Recipe,
    RetinaNetRecipe,
    Schedule,
    SSDRecipe,
)
from detection.params.sections import Evaluate, Plots, Pretrain, Train

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
