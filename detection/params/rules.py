"""Rules between a recipe's fields that types cannot say."""

from collections.abc import Callable
from typing import Any

from detection.errors import ParamsError
from detection.params.recipe import FasterRCNNRecipe, FCOSRecipe, Recipe, RetinaNetRecipe, SSDRecipe

Refuse = Callable[[str, str], None]
SSD_MAPS = 6
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
MOBILENETS = ("mobilenet_v3_small", "mobilenet_v3_large")
BACKBONES = {
    "fasterrcnn": (*RESNETS, *MOBILENETS, "vgg16"),
    "retinanet": RESNETS,
    "fcos": RESNETS,
    "ssd": ("vgg16",),
    "ssdlite": MOBILENETS,
}
COUNTS = (  # of a recipe of any architecture: whole numbers from 1
    *("epochs", "iterations", "batch_size", "image_size", "detections_per_image", "topk_candidates"),
    *("fpn_channels", "tower_depth", "topk_per_level", "rpn_convs", "rpn_channels", "rpn_batch"),
    *("rpn_pre_nms_train", "rpn_pre_nms_test", "rpn_post_nms_train", "rpn_post_nms_test"),
    *("pool_size", "roi_hidden", "roi_batch"),
)
SHARES = (  # from 0 to 1
    *("score_threshold", "nms_threshold", "fg_iou", "bg_iou"),
    *("rpn_nms_threshold", "rpn_score_threshold", "rpn_fg_iou", "rpn_bg_iou", "rpn_positive_fraction"),
    *("roi_fg_iou", "roi_bg_iou", "roi_positive_fraction"),
)
POSITIVE = (  # numbers, or lists of them, above 0
    *("anchor_sizes", "aspect_ratios", "anchor_strides", "scales", "steps", "image_std"),
    *("center_sampling_radius", "optimizer.lr", "schedule.gamma"),
)
NOT_NEGATIVE = (
    *("optimizer.weight_decay", "optimizer.norm_weight_decay", "optimizer.bias_weight_decay"),
    *("optimizer.bias_lr_factor", "optimizer.backbone_lr_factor", "rpn_beta", "roi_beta"),
    *("schedule.final", "schedule.warmup_factor"),
)
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
    _check_ranges(recipe, refuse)
    if recipe.schedule.name == "multistep" and any(m <= 0 for m in recipe.schedule.milestones):
        refuse("schedule.milestones", "must be positive")
    if recipe.resize == "keep" and recipe.max_size is not None and recipe.max_size < recipe.image_size:
        refuse("max_size", f"is below image_size ({recipe.max_size} < {recipe.image_size})")
    last = 0.0
    for phase in recipe.schedule.phases:
        if phase.lr_factor < 0:
            refuse("schedule.phases", f"lr_factor must not be negative ({phase.lr_factor})")
        if phase.until <= last:
            refuse("schedule.phases", f"each must end after the one before ({phase.until} <= {last})")
        last = phase.until
    if recipe.augmentation == "multiscale" and (recipe.resize != "keep" or recipe.fixed_size):
        refuse("augmentation", "multiscale draws the short side: it needs resize: keep and fixed_size: false")
    if isinstance(recipe, FasterRCNNRecipe):
        _check_two_stage(recipe, refuse)
    elif isinstance(recipe, RetinaNetRecipe):
        _check_retinanet(recipe, refuse)
    elif isinstance(recipe, FCOSRecipe):
        _check_towers(recipe.fpn_channels, refuse)
    elif isinstance(recipe, SSDRecipe):
        _check_ssd(recipe, refuse)


def _check_ranges(recipe: Recipe, refuse: Refuse) -> None:
    """Numbers that are possible only within bounds, in whatever fields this recipe has."""
    for field in COUNTS:
        value = getattr(recipe, field, None)
        if value is not None and value < 1:
            refuse(field, f"must be at least 1, not {value}")
    for field in SHARES:
        share = getattr(recipe, field, 0.0)
        if not 0 <= share <= 1:
            refuse(field, f"is a share from 0 to 1, not {share}")
    for field in POSITIVE:
        if not all(number > 0 for number in _numbers(recipe, field)):
            refuse(field, "must be above 0")
    for field in NOT_NEGATIVE:
        if not all(number >= 0 for number in _numbers(recipe, field)):
            refuse(field, "must not be negative")
    if not 0 <= recipe.optimizer.momentum < 1:
        refuse("optimizer.momentum", f"is from 0 to below 1, not {recipe.optimizer.momentum}")
    if recipe.optimizer.nesterov and (recipe.optimizer.name != "sgd" or not recipe.optimizer.momentum):
        refuse("optimizer.nesterov", "is SGD's, with a momentum above 0")
    for part in ("", "rpn_", "roi_"):
        low, high = getattr(recipe, f"{part}bg_iou", 0), getattr(recipe, f"{part}fg_iou", 1)
        if low > high:
            refuse(f"{part}bg_iou", f"is above {part}fg_iou ({low} > {high})")
    stages = 6 if recipe.backbone in MOBILENETS else 5
    if not 0 <= recipe.trainable_layers <= stages:
        refuse("trainable_layers", f"{recipe.backbone} has {stages} stages: 0 to {stages}")
    levels, lowest = getattr(recipe, "fpn_levels", (5,)), 1 if recipe.backbone in MOBILENETS else 2
    if levels not in [tuple(range(a, b + 1)) for a in range(lowest, 6) for b in range(a, 6)]:
        refuse("fpn_levels", f"are neighbours, rising, of {recipe.backbone}'s {lowest} to 5")


def _numbers(recipe: Recipe, field: str) -> list[float]:
    """The numbers of a field, however deep its lists; none of a field that is null or not there."""
    value: Any = recipe
    for name in field.split("."):
        value = getattr(value, name, None)
    numbers = [value]
    while any(isinstance(one, tuple) for one in numbers):
        numbers = [n for one in numbers for n in (one if isinstance(one, tuple) else (one,))]
    return [number for number in numbers if number is not None]


def _check_anchors(recipe: FasterRCNNRecipe | RetinaNetRecipe, refuse: Refuse) -> None:
    for field in ("anchor_sizes", "aspect_ratios"):
        if not _numbers(recipe, field):
            refuse(field, "are empty: there would be no anchor at all")


def _check_retinanet(recipe: RetinaNetRecipe, refuse: Refuse) -> None:
    _check_anchors(recipe, refuse)
    levels = len(recipe.fpn_levels) + (2 if recipe.pyramid == "fpn" else 1)
    for field in ("anchor_sizes", "anchor_strides"):
        given = getattr(recipe, field)
        if given is not None and len(given) != levels:
            refuse(field, f"needs one entry per pyramid level: {levels}, not {len(given)}")
    if len({len(sizes) for sizes in recipe.anchor_sizes}) > 1:
        refuse("anchor_sizes", "all levels share one head: each needs equally many sizes")
    if recipe.pyramid == "aligned" and (recipe.fpn_levels != (3, 4, 5) or recipe.top_from != "c5"):
        refuse("pyramid", "aligned stands on levels 3, 4 and 5 with P6 from C5: set top_from: c5")
    if recipe.head_norm == "group":
        _check_towers(recipe.fpn_channels, refuse)


def _check_towers(channels: int, refuse: Refuse) -> None:
    if channels % 32:
        refuse("fpn_channels", f"group normalisation makes 32 groups of them, and {channels} has no 32 parts")


def _check_ssd(recipe: SSDRecipe, refuse: Refuse) -> None:
    if recipe.resize != "stretch" or not recipe.fixed_size:
        refuse("resize", "SSD's priors fit one square picture size: set resize: stretch and fixed_size: true")
    if len(recipe.aspect_ratios) != SSD_MAPS:
        refuse(
            "aspect_ratios", f"needs one entry per feature map: {SSD_MAPS}, not {len(recipe.aspect_ratios)}"
        )
    if len(recipe.scales) != SSD_MAPS + 1:
        refuse("scales", f"needs one entry more than there are feature maps: {SSD_MAPS + 1}")
    if recipe.steps is not None and len(recipe.steps) != SSD_MAPS:
        refuse("steps", f"needs one entry per feature map: {SSD_MAPS}, not {len(recipe.steps)}")
    if not 0 < recipe.positive_fraction <= 1:
        refuse("positive_fraction", f"is a share above 0 and at most 1, not {recipe.positive_fraction}")
    if recipe.architecture == "ssd":
        if recipe.reduced_tail:
            refuse("reduced_tail", "is MobileNet's; VGG16 has none")
        _check_vgg_maps(recipe, refuse)


def _check_vgg_maps(recipe: SSDRecipe, refuse: Refuse) -> None:
    """The steps must lay the priors of every map over the whole picture, and not beyond."""
    side = recipe.image_size
    conv4 = -(-(side // 4) // 2)
    fc7 = conv4 // 2
    conv8, conv9 = (fc7 + 1) // 2, ((fc7 + 1) // 2 + 1) // 2
    maps = [conv4, fc7, conv8, conv9, conv9 - 2, conv9 - 4]
    if maps[-1] < 1:
        refuse(
            "image_size", f"{side} pixels leave nothing of the last feature map; 300 is the published size"
        )
    for cells, step in zip(maps, recipe.steps or (), strict=False):
        if not (cells - 1) * step < side <= (cells + 1) * step:
            refuse(
                "steps",
                f"{cells} priors {step} pixels apart do not fit {side} pixels: these steps are for another "
                "image_size (8, 16, 32, 64, 100, 300 for 300 pixels)",
            )


def _check_two_stage(recipe: FasterRCNNRecipe, refuse: Refuse) -> None:
    """What a pyramid, one map, the pooling and the heads ask of one another."""
    _check_anchors(recipe, refuse)
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
