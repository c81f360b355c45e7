"""Rules between a recipe's fields that types cannot say."""

from collections.abc import Callable

from detection.errors import ParamsError
from detection.params.recipe import FasterRCNNRecipe, Recipe, RetinaNetRecipe, SSDRecipe

Refuse = Callable[[str, str], None]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
MOBILENETS = ("mobilenet_v3_small", "mobilenet_v3_large")
BACKBONES = {
    "fasterrcnn": (*RESNETS, *MOBILENETS, "vgg16"),
    "retinanet": RESNETS,
    "fcos": RESNETS,
    "ssd": ("vgg16",),
    "ssdlite": MOBILENETS,
}


FPN_BACKBONES, C4_BACKBONES = RESNETS + MOBILENETS, (*RESNETS, "vgg16")


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
    last = 0.0
    for phase in recipe.schedule.phases:
        if phase.until <= last:
            refuse("schedule.phases", f"each must end after the one before ({phase.until} <= {last})")
        last = phase.until
    if recipe.augmentation == "multiscale" and (recipe.resize != "keep" or recipe.fixed_size):
        refuse("augmentation", "multiscale draws the short side: it needs resize: keep and fixed_size: false")
    if isinstance(recipe, FasterRCNNRecipe):
        _check_two_stage(recipe, refuse)
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


def _check_two_stage(recipe: FasterRCNNRecipe, refuse: Refuse) -> None:
    """What a pyramid, one map, the pooling and the heads ask of one another."""
    fpn = recipe.features == "fpn"
    possible = FPN_BACKBONES if fpn else C4_BACKBONES
    if recipe.backbone not in possible:
        refuse(
            "backbone",
            f"features: {recipe.features} cannot stand on {recipe.backbone}; possible: {', '.join(possible)}",
        )
    if not fpn and recipe.fpn_norm != "none":
        refuse("fpn_norm", "there is no pyramid with features: c4")
    maps = len(recipe.fpn_levels) + 1 if fpn else 1
    for field in ("anchor_sizes", "anchor_strides"):
        entries = getattr(recipe, field)
        if entries is not None and len(entries) != maps:
            what = "pyramid level" if fpn else "map (features: c4 has one)"
            refuse(field, f"needs one entry per {what}: {maps}, not {len(entries)}")
    if len({len(sizes) for sizes in recipe.anchor_sizes}) > 1:
        refuse("anchor_sizes", "all maps share one RPN head, so each needs as many sizes as the others")
    if fpn and recipe.pooling == "roi_pool":
        refuse("pooling", f"roi_pool reads one map, the pyramid has {maps}; set roi_align or features: c4")
    if recipe.roi_head == "layer4" and (fpn or recipe.backbone not in RESNETS):
        refuse("roi_head", "layer4 is what features: c4 leaves of a ResNet; set fc or conv_fc")
    if recipe.roi_head == "layer4" and recipe.pool_size < 2:
        refuse("pool_size", "layer4 halves it: at least 2")
    for field in ("rpn_beta", "roi_beta"):
        if getattr(recipe, field) < 0:
            refuse(field, "must not be negative")
