"""Start a detector from the weights of another one: same architecture, classes carried over by name.

Rows of the output layers belong to classes; a row is copied where source and target have a class of the same name,
and keeps its initial value otherwise. All other tensors must fit exactly.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detection.errors import CheckpointError
from detection.models.backbones import first_difference, without_counters
from detection.models.detector import Detector
from detection.models.faster_rcnn import FasterRCNN
from detection.models.heads import ClassificationHead
from detection.params import Params
from detection.params.reader import Override
from detection.text import flatten, listed
from detection.weights import StartWeights

BACKGROUND_NAME = "__background__"
COCO_NAMES = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
"""VOC's names of COCO's classes; `diningtable` and `pottedplant` differ by a space only."""

STRUCTURE = (
    *("features", "fpn_levels", "fpn_channels", "fpn_norm", "pyramid", "p6_from", "head_convs", "head_norm"),
    *("anchors", "default_boxes", "reduced_tail", "image_mean", "image_std"),
    *("rpn.num_convs", "rpn.channels"),
    *("roi.pooling", "roi.pool_scale", "roi.pool_size", "roi.head", "roi.hidden_channels"),
)
"""Settings of a recipe that the shapes or the meaning of weights depend on."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Tensors and classes that a detector got from its start weights."""

    source: dict[str, Any]
    """Resolved `start.from`."""
    loaded: int
    """Number of tensors loaded whole."""
    carried: dict[str, str]
    """Class of the data: class of the source whose rows it got."""
    initialized: tuple[str, ...]
    """Classes of the data that the source does not have: initial weights of the recipe."""
    unused: tuple[str, ...]
    """Classes of the source that the data does not have."""
    tensors: tuple[dict[str, str], ...]
    """Output tensors: `tensor`, `shape`, `rows` (copied of all) and `reason` for the rows that were initialized."""
    notes: tuple[str, ...]
    """Settings of the recipe that differ from the source's and change the meaning of its weights."""

    def lines(self) -> Iterator[str]:
        """Lines for the log."""
        yield f"start from {self.source['from']}: {self.loaded} tensors loaded whole, {len(self.tensors)} by class"
        names = [name if name == own else f"{name} (from {own})" for name, own in self.carried.items()]
        yield f"  classes carried over: {', '.join(names) or 'none'}"
        if self.initialized:
            yield f"  classes initialized: {', '.join(self.initialized)}"
        if self.unused:
            yield f"  classes of the source that the data lacks: {listed(self.unused)}"
        for row in self.tensors:
            yield f"  {row['tensor']} {row['shape']}: {row['rows']} rows copied{row['reason'] and '; '}{row['reason']}"
        yield from (f"  {note}" for note in self.notes)


def with_structure(params: Params, source: Mapping[str, Any]) -> Params:
    """Params whose recipe has the structure of the source's: sizes of layers, anchors, normalization.

    What an override, a preset or a budget sets stays, as does everything of another architecture or backbone.

    Args:
        params: The experiment.
        source: Recipe of the start weights as plain values; empty if unknown.
    """
    own, theirs = flatten(asdict(params.recipe)), flatten(source)
    if any(own[key] != theirs.get(key) for key in ("architecture", "backbone")):
        return params
    given = {override.key for override in params.overrides}
    adopted = {
        key: _tuples(value)
        for key, value in theirs.items()
        if key in own and key not in given and _is_structure(key) and _tuples(value) != _tuples(own[key])
    }
    overrides = tuple(Override(key, value, "start.from") for key, value in adopted.items())
    return replace(params, recipe=params.recipe.update(adopted), overrides=params.overrides + overrides)


def _is_structure(key: str) -> bool:
    return any(f"{key}.".startswith(f"{one}.") for one in STRUCTURE)


def _tuples(value: Any) -> Any:
    """Value with tuples in the place of lists, as in a recipe."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def transfer(detector: Detector, start: StartWeights, classes: Sequence[str], recipe: Mapping[str, Any]) -> Transfer:
    """Load start weights into a detector.

    Args:
        detector: Detector with its initial weights.
        start: The weights.
        classes: Class names of the data, indexed by label.
        recipe: Recipe of the detector as plain values.

    Raises:
        CheckpointError: The weights are of another architecture or shape; names the first difference in each
            direction. Nothing is loaded.
    """
    own = without_counters(detector.state_dict())
    theirs = without_counters(start.state_dict)
    layers = {f"{name}.{part}": rows for name, rows in _class_layers(detector).items() for part in ("weight", "bias")}
    outputs = {name: own[name] for name in layers}
    fixed = {k: v for k, v in own.items() if k not in layers}
    missing_outputs = {k: v for k, v in outputs.items() if k not in theirs}
    if difference := first_difference(fixed | missing_outputs, {k: v for k, v in theirs.items() if k not in outputs}):
        raise CheckpointError(f"start.from: {start.source['from']} does not fit: {difference}{_hint(start, recipe)}")
    count = _source_classes(start, {name: theirs[name] for name in outputs}, outputs, layers)
    names = _row_names(start, count)
    target = [BACKGROUND_NAME, *classes] if _has_background(detector) else list(classes)
    pairs = _matches(target, names)
    tensors = []
    with torch.no_grad():
        for name, value in fixed.items():
            value.copy_(theirs[name])
        for name, (anchors, columns) in layers.items():
            rows = own[name].unflatten(0, (anchors, len(target), columns))
            source = theirs[name].unflatten(0, (anchors, count, columns))
            rows[:, list(pairs)] = source[:, list(pairs.values())].to(rows.dtype)
            tensors.append(_row(name, own[name], anchors * columns * len(pairs), names is None))
    carried = {target[t]: names[s] for t, s in pairs.items() if names and target[t] != BACKGROUND_NAME}
    return Transfer(
        source=start.source,
        loaded=len(fixed),
        carried=carried,
        initialized=tuple(name for name in classes if name not in carried),
        unused=tuple(n for n in names or () if n not in {*carried.values(), BACKGROUND_NAME, "N/A"}),
        tensors=tuple(tensors),
        notes=tuple(_notes(start.recipe, recipe)),
    )


def _class_layers(detector: Detector) -> dict[str, tuple[int, int]]:
    """Output layers with rows per class: their names, and the sizes around the class dimension.

    The first dimension of their tensors is [anchors per cell, classes, columns per class].
    """
    module: Any = detector
    if isinstance(detector, FasterRCNN):
        predictor = "roi_heads.box_predictor"
        return {f"{predictor}.cls_score": (1, 1), f"{predictor}.bbox_pred": (1, 4)}
    head, name = module.head.classification_head, "head.classification_head"
    if isinstance(head, ClassificationHead):
        return {f"{name}.cls_logits": (module.anchors.anchors_per_cell[0], 1)}
    output = ".1" if isinstance(head.module_list[0], nn.Sequential) else ""  # SSDlite's comes after a depthwise layer
    return {
        f"{name}.module_list.{i}{output}": (anchors, 1) for i, anchors in enumerate(module.anchors.anchors_per_cell)
    }


def _has_background(detector: Detector) -> bool:
    module: Any = detector
    return isinstance(detector, FasterRCNN) or not isinstance(module.head.classification_head, ClassificationHead)


def _source_classes(
    start: StartWeights, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], layers: Mapping[str, tuple[int, int]]
) -> int:
    """Number of classes in the rows of the source's output tensors, the background's included.

    Raises:
        CheckpointError: The tensors differ in more than the number of classes.
    """
    counts = set()
    for name, (anchors, columns) in layers.items():
        rows, rest = divmod(len(theirs[name]), anchors * columns)
        counts.add(rows)
        if rest or theirs[name].shape[1:] != own[name].shape[1:] or len(counts) > 1:
            raise CheckpointError(
                f"start.from: {start.source['from']} does not fit: {name!r} has shape {tuple(theirs[name].shape)} in "
                f"the file, {tuple(own[name].shape)} in the network, which differs in more than the number of classes"
            )
    return counts.pop()


def _row_names(start: StartWeights, count: int) -> list[str] | None:
    """Class name of each row of the source; None if they are unknown.

    Raises:
        CheckpointError: The source has another number of names than rows.
    """
    if start.classes is None:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        categories: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return categories if count == len(categories) else None
    names = list(start.classes)
    if count == len(names) + 1:
        return [BACKGROUND_NAME, *names]
    if count != len(names):
        raise CheckpointError(
            f"start.from: {start.source['from']} has outputs of {count} classes (with the background {count - 1}), "
            f"but {len(names)} class names; correct start.classes"
        )
    return names


def _matches(target: Sequence[str], source: Sequence[str] | None) -> dict[int, int]:
    """Row of the source for each row of the target whose class the source has.

    An exact name comes first; else names match without case, spaces, `_` and `-`, and by VOC's and COCO's spelling.
    """
    if source is None:
        return {}
    exact = {name: row for row, name in enumerate(source)}
    similar = {_canonical(name): row for row, name in enumerate(source)}
    pairs = {i: exact.get(name, similar.get(_canonical(name))) for i, name in enumerate(target)}
    taken = [row for row in pairs.values() if row is not None]
    return {
        i: row for i, row in pairs.items() if row is not None and (taken.count(row) == 1 or source[row] == target[i])
    }


def _canonical(name: str) -> str:
    plain = re.sub(r"[\s_-]", "", name.casefold()) or name
    return COCO_NAMES.get(plain, plain)


def _row(name: str, value: Tensor, copied: int, unknown: bool) -> dict[str, str]:
    reason = ""
    if copied < len(value):
        reason = "class names of the source unknown, see start.classes" if unknown else "classes initialized"
    return {"tensor": name, "shape": str(tuple(value.shape)), "rows": f"{copied} of {len(value)}", "reason": reason}


def _notes(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Differences in settings on which the meaning of weights depends."""
    there, here = (flatten(recipe) for recipe in (theirs, own))
    for key in filter(_is_structure, there):
        if key in here and _tuples(here[key]) != _tuples(there[key]):
            values = (json.dumps(values[key]) for values in (here, there))
            yield f"{key} = {next(values)}, but {next(values)} in the source: an override in params.yaml sets it"


def _hint(start: StartWeights, recipe: Mapping[str, Any]) -> str:
    """Architecture and backbone of the source, if they are known and others than the recipe's."""
    keys = ("architecture", "backbone")
    theirs = " on ".join(str(start.recipe[key]) for key in keys if key in start.recipe)
    own = " on ".join(str(recipe[key]) for key in keys)
    return f"; the source is {theirs}, the recipe {own}" if theirs and theirs != own else "; choose its model"
