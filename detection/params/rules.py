"""Rules between a recipe's fields that types cannot say."""

from detection.errors import ParamsError
from detection.params.recipe import FasterRCNNRecipe, Recipe, RetinaNetRecipe, SSDRecipe

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
MOBILENETS = ("mobilenet_v3_small", "mobilenet_v3_large")
BACKBONES = {
    "fasterrcnn": RESNETS + MOBILENETS,
    "retinanet": RESNETS,
    "fcos": RESNETS,
    "ssd": ("vgg16",),
    "ssdlite": MOBILENETS,
}


def check_recipe(recipe: Recipe, key: str, file: str) -> None:
    """Refuse a recipe whose fields contradict one another.

    Raises:
        ParamsError: Naming the key and what would be possible.
    """

    def refuse(field: str, why: str) -> None:
        raise ParamsError(f"{file}: {key}.{field}: {why}")

    possible = BACKBONES[recipe.architecture]
    if recipe.backbone not in possible:
        refuse(
            "backbone",
            f"{recipe.architecture} cannot stand on {recipe.backbone}; possible: {', '.join(possible)}",
        )
    if (recipe.epochs is None) == (recipe.iterations is None):
        refuse("epochs", "give either epochs or iterations")
    for field in ("epochs", "iterations", "batch_size", "image_size"):
        value = getattr(recipe, field)
        if value is not None and value < 1:
            refuse(field, f"must be at least 1, not {value}")
    if recipe.schedule.name == "multistep" and any(m <= 0 for m in recipe.schedule.milestones):
        refuse("schedule.milestones", "must be positive")
    if recipe.resize == "keep" and recipe.max_size is not None and recipe.max_size < recipe.image_size:
        refuse("max_size", f"is below image_size ({recipe.max_size} < {recipe.image_size})")
    if isinstance(recipe, FasterRCNNRecipe):
        levels = len(recipe.fpn_levels) + 1
        if len(recipe.anchor_sizes) != levels:
            refuse(
                "anchor_sizes", f"needs one entry per pyramid level: {levels}, not {len(recipe.anchor_sizes)}"
            )
    elif isinstance(recipe, RetinaNetRecipe):
        levels = len(recipe.fpn_levels) + 2
        if len(recipe.anchor_sizes) != levels:
            refuse(
                "anchor_sizes", f"needs one entry per pyramid level: {levels}, not {len(recipe.anchor_sizes)}"
            )
    elif isinstance(recipe, SSDRecipe):
        if recipe.resize != "stretch" or not recipe.fixed_size:
            refuse(
                "resize", "SSD's priors fit one square picture size: set resize: stretch and fixed_size: true"
            )
        if len(recipe.scales) != len(recipe.aspect_ratios) + 1:
            refuse("scales", "needs one entry more than aspect_ratios has")
