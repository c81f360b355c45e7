"""`params.yaml` as typed, validated, frozen dataclasses.

    params = load("params.yaml")
    params.recipe.optimizer.lr      # the selected model's recipe, merged for the selected dataset

Imports neither torch nor mlflow, so that an error in `params.yaml` is shown within half a second. The
dataclasses need the standard library only; the YAML reader and the dataclasses are imported on first use, as
`detection score` needs neither recipes nor datasets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset, YoloDataset
    from detection.params.reader import Params, load
    from detection.params.recipe import FasterRCNNRecipe, FCOSRecipe, Recipe, RetinaNetRecipe, SSDRecipe
    from detection.params.recipe_base import Optimizer, Schedule
    from detection.params.stages import Evaluate, Plots, Pretrain, Train

__all__ = [
    "CocoDataset", "Dataset", "Evaluate", "FCOSRecipe", "FasterRCNNRecipe", "Optimizer", "Params", "Plots",
    "Pretrain", "Recipe", "RetinaNetRecipe", "SSDRecipe", "Schedule", "ShapesDataset", "Train",
    "VocDataset", "YoloDataset", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` on first use."""
    if name in __all__:
        for module in ("stages", "datasets", "recipe_base", "recipe", "reader"):
            content = vars(import_module(f"{__name__}.{module}"))
            if name in content:
                return content[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
