"""Start weights: tensors and classes that carry over, and what is refused. No weights are downloaded."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models.detection as peers
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.detection.image_list import ImageList

from detection.data.loading.batch import ImageSizes
from detection.errors import CheckpointError
from detection.models.backbones import without_counters
from detection.models.build import build_detector, save_detector, without_weights
from detection.models.detector import Detector
from detection.models.transfer import Transfer, _class_layers, _is_structure, _tuples, transfer, with_structure
from detection.params import Params, Recipe, load
from detection.params.reader import read_yaml
from detection.weights import StartWeights, load_start, read_start

MODELS = {
    "fasterrcnn": 96,
    "fasterrcnn_v2": 96,
    "fasterrcnn_mobilenet": 96,
    "fasterrcnn_mobilenet_320": 96,
    "retinanet": 96,
    "retinanet_v2": 96,
    "fcos": 96,
    "ssd300": 300,
    "ssdlite320": 320,
}
"""Recipes with published weights, and the side in pixels of a test image."""
COCO: list[str] = peers.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
NAMES = [name for name in COCO if name not in ("__background__", "N/A")]
NEVER = -1e4
"""Bias of the outputs that are no class: their score is exactly 0."""


def recipe_of(model: str) -> Recipe:
    recipe = load(model=model, dataset="coco2017").recipe
    return recipe.update({"reduced_tail": True}) if model == "ssdlite320" else recipe


def torchvision_detector(recipe: Recipe, side: int) -> Any:
    """The builder's detector for COCO's 91 outputs, with random weights and BatchNorm statistics of noise."""
    assert recipe.coco_weights is not None
    torch.manual_seed(0)
    url = get_weight(recipe.coco_weights).url  # …/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth
    name = url.rsplit("/", 1)[1].rsplit("-", 1)[0].removesuffix("_coco")
    theirs = getattr(peers, name)(weights=None, weights_backbone=None)
    for module in theirs.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        theirs.backbone.train()(torch.randn(4, 3, side, side))
    return theirs


def set_outputs(theirs: Any, ours: Detector) -> None:
    """Random rows of the classes, and rows without a class that never win."""
    state, empty = theirs.state_dict(), [i for i, name in enumerate(COCO) if name == "N/A"]
    background = "roi_heads.box_predictor.cls_score.weight" in state or "module_list" in next(iter(_class_layers(ours)))
    for name, (anchors, columns) in _class_layers(ours).items():
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        with torch.no_grad():
            weight.normal_(std=0.3 / weight[0].numel() ** 0.5)
            bias.normal_(std=0.3)
            if columns == 1:
                rows = bias.view(anchors, len(COCO))
                rows[:, empty if background else [0, *empty]] = NEVER


def detect(theirs: Any, images: Tensor, ours: Any) -> dict[str, Tensor]:
    """torchvision's detections of one image, without its resizing."""

    class Transform(nn.Module):
        def forward(self, *_: object) -> Any:
            return ImageList((images - ours.mean) / ours.std, [(images.shape[2], images.shape[3])]), None

        def postprocess(self, result: Any, *_: object) -> Any:
            return result

    theirs.transform = Transform()
    found: dict[str, Tensor] = theirs([images[0]])[0]
    return found


@pytest.mark.parametrize("model", MODELS)
def test_a_file_of_torchvision_carries_over_strictly_and_detects_the_same(model: str, tmp_path: Path) -> None:
    recipe = recipe_of(model)
    if model == "ssd300":  # the recipe's boxes are the paper's, torchvision's builder has its own
        scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
        recipe = recipe.update(
            {
                "default_boxes.scales": scales,
                "default_boxes.clip_centers": False,
                "topk_candidates": 400,
                "detections_per_image": 200,
                "clip_before_nms": True,
            }
        )
    theirs = torchvision_detector(recipe, MODELS[model])
    classes = [*reversed(NAMES)]
    ours = build_detector(recipe, len(classes), None)
    set_outputs(theirs, ours)
    file = tmp_path / "published.pth"
    torch.save(theirs.state_dict(), file)

    moved = transfer(ours, read_start(file, {"from": str(file)}), classes, asdict(recipe))

    expected = without_counters(theirs.state_dict())
    assert moved.loaded + len(moved.tensors) == len(expected)
    assert list(moved.carried) == classes
    assert moved.initialized == moved.unused == ()
    assert not any(row["reason"] for row in moved.tensors)
    loaded = ours.state_dict()
    copied = {row["tensor"] for row in moved.tensors}
    assert all(torch.equal(loaded[name], value) for name, value in expected.items() if name not in copied)
    assert {row["tensor"] for row in moved.tensors} == expected.keys() & {
        f"{name}.{part}" for name in _class_layers(ours) for part in ("weight", "bias")
    }
    side = MODELS[model]
    images, size = torch.rand(1, 3, side, side), torch.tensor([[side, side]])
    with torch.inference_mode():
        mine = ours.eval().detect(images, ImageSizes(size, size))[0]
        found = detect(theirs.eval(), images, ours)
    assert len(mine.scores) == len(found["scores"]) > 20
    labels = [COCO.index(classes[label]) for label in mine.labels]
    near = (mine.boxes[:, None] - found["boxes"][None]).abs().amax(2) <= 0.1  # px; random layers amplify rounding
    near &= (mine.scores[:, None] - found["scores"][None]).abs() <= 1e-3
    near &= torch.tensor(labels)[:, None] == found["labels"][None]
    assert int((~near.any(1)).sum()) <= 1  # the last one of 100 may tie


def small(classes: int, seed: int = 0, **changes: Any) -> tuple[Detector, Recipe]:
    torch.manual_seed(seed)
    recipe = load().recipe.update(changes)
    return build_detector(recipe, classes, None), recipe


def started(
    theirs: Detector, names: tuple[str, ...] | None, classes: list[str], recipe: Recipe, known: Any = None
) -> tuple[Detector, Transfer]:
    """A detector of other random weights, started from the first."""
    torch.manual_seed(1)
    ours = build_detector(recipe, len(classes), None)
    start = StartWeights({"from": "x"}, theirs.state_dict(), names, known or {})
    return ours, transfer(ours, start, classes, asdict(recipe))


VOC = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


def test_the_classes_of_voc_are_found_in_coco() -> None:
    theirs, recipe = small(90)
    _, moved = started(theirs, tuple(COCO), VOC, recipe)
    assert moved.initialized == ()
    others = {mine: own for mine, own in moved.carried.items() if mine != own}
    assert others == {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert len(moved.unused) == 60


@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "retinanet_resnet18", "ssdlite320"])
@pytest.mark.parametrize(
    ("classes", "carried"),
    [
        (["a", "b", "c"], "abc"),
        (["c", "a", "b"], "abc"),
        (["b"], "b"),
        (["d", "c", "a", "e", "b"], "abc"),
        (["x", "y"], ""),
    ],
)
def test_more_fewer_and_reordered_classes(model: str, classes: list[str], carried: str) -> None:
    recipe = load(model=model).recipe
    torch.manual_seed(0)
    theirs = build_detector(recipe, 3, None)
    torch.manual_seed(1)
    ours = build_detector(recipe, len(classes), None)
    initial = {name: value.clone() for name, value in ours.state_dict().items()}
    moved = transfer(ours, StartWeights({"from": "x"}, theirs.state_dict(), ("a", "b", "c")), classes, asdict(recipe))
    assert sorted(moved.carried) == sorted(carried)
    assert set(moved.initialized) == {*classes} - {*carried}
    assert set(moved.unused) == {*"abc"} - {*carried}
    background = int(model != "retinanet_resnet18")
    for name, (anchors, columns) in _class_layers(ours).items():
        for part in ("weight", "bias"):
            key = f"{name}.{part}"
            mine, before, source = (
                value.unflatten(0, (anchors, count + background, columns))
                for value, count in (
                    (ours.state_dict()[key], len(classes)),
                    (initial[key], len(classes)),
                    (theirs.state_dict()[key], 3),
                )
            )
            if background:
                assert torch.equal(mine[:, 0], source[:, 0])
            for i, label in enumerate(classes):
                expected = source[:, "abc".index(label) + background] if label in carried else before[:, i + background]
                assert torch.equal(mine[:, i + background], expected)


def test_an_exact_name_comes_before_a_similar_one() -> None:
    theirs, recipe = small(3)
    _, moved = started(theirs, ("Dog", "dog", "hot-dog"), ["dog", "Dog", "hot dog"], recipe)
    assert moved.carried == {"dog": "dog", "Dog": "Dog", "hot dog": "hot-dog"}


def test_two_similar_names_do_not_share_a_row() -> None:
    theirs, recipe = small(1)
    _, moved = started(theirs, ("tv",), ["tvmonitor", "TV"], recipe)
    assert moved.carried == {}


def test_unknown_class_names_carry_no_class_over_and_say_so() -> None:
    theirs, recipe = small(3)
    _, moved = started(theirs, None, ["a", "b", "c"], recipe)
    assert moved.initialized == ("a", "b", "c")
    assert all("start.classes" in row["reason"] for row in moved.tensors)
    assert any("start.classes" in line for line in moved.lines())


def test_another_number_of_names_than_outputs_is_an_error() -> None:
    theirs, recipe = small(3)
    with pytest.raises(CheckpointError, match=r"4 classes .* 2 class names; correct start.classes"):
        started(theirs, ("a", "b"), ["a"], recipe)


def test_another_architecture_is_refused_with_a_difference_in_each_direction() -> None:
    theirs, recipe = small(2)
    with pytest.raises(
        CheckpointError, match=r"x does not fit: the file lacks '.*' and has '.*'.*retinanet on resnet18"
    ):
        started(theirs, ("a", "b"), ["a"], load(model="retinanet_resnet18").recipe, asdict(recipe))


def test_other_shapes_are_refused_and_nothing_is_loaded() -> None:
    theirs, _ = small(2)
    wide, recipe = small(2, **{"roi.hidden_channels": 128})
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"has shape \(256,.*\) in the file, \(128,"):
        transfer(wide, StartWeights({"from": "x"}, theirs.state_dict(), ("a", "b")), ["a"] * 2, asdict(recipe))
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


def test_other_anchors_are_named() -> None:
    theirs, recipe = small(1)
    other = asdict(recipe.update({"anchors.sizes": ((8,), (16,), (32,), (64,), (128,))}))
    _, moved = started(theirs, ("a",), ["a"], recipe, other)
    assert any("anchors.sizes = " in line and "128" in line for line in moved.lines())


@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "retinanet", "fcos", "retinanet_257", "fasterrcnn_vgg16"])
def test_a_finetune_has_the_structure_of_its_source(model: str, tmp_path: Path) -> None:
    """The preset `small`, which trained the source, changes sizes of layers and anchors; `finetune` does not."""
    small, tuned = (load(params_file(tmp_path, start), model=model, dataset="mine") for start in (None, "first.pt"))
    assert tuned.recipe.update(structure(small)) != tuned.recipe
    adopted = with_structure(tuned, json.loads(json.dumps(asdict(small.recipe))))
    assert adopted.recipe == tuned.recipe.update(structure(small))
    assert {one.source for one in adopted.overrides[len(tuned.overrides) :]} == {"start.from"}
    assert adopted.recipe.optimizer == tuned.recipe.optimizer
    own = without_counters(build_detector(without_weights(adopted.recipe), 3, None).state_dict())
    theirs = without_counters(build_detector(without_weights(small.recipe), 3, None).state_dict())
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}


def test_an_override_is_stronger_than_the_structure_of_the_source(tmp_path: Path) -> None:
    file = params_file(tmp_path, "first.pt", **{"models.fcos.overrides.finetune": {"fpn_channels": 64}})
    source = asdict(load(file, model="fcos", dataset="shapes").recipe.update({"fpn_channels": 128}))
    params = load(file, model="fcos", dataset="mine")
    assert with_structure(params, source).recipe.update({}).fpn_channels == 64  # type: ignore[union-attr]
    assert with_structure(params, {}) == params
    assert with_structure(params, source | {"backbone": "resnet18"}) == params


def params_file(folder: Path, start: str | None, **changes: Any) -> Path:
    """params.yaml with a dataset `mine` without a preset of its own."""
    document = read_yaml("params.yaml")
    document["datasets"]["mine"] = {"format": "voc", "path": "mine", "train": ["./"], "holdout_fraction": 0.1}
    document["budgets"]["mine"], document["start"] = {}, {"from": start}
    for key, value in changes.items():
        *path, last = key.split(".")
        node = document
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    file = folder / "params.yaml"
    file.write_text(json.dumps(document))
    return file


def structure(params: Params) -> dict[str, Any]:
    return {one.key: _tuples(one.value) for one in params.overrides if _is_structure(one.key)}


def test_a_detector_of_this_project_brings_its_class_names(tmp_path: Path) -> None:
    theirs, recipe = small(2)
    save_detector(tmp_path / "d.pt", theirs.state_dict(), recipe, ("cat", "dog"), "m")
    start = read_start(tmp_path / "d.pt", {"from": "d.pt"})
    assert start.classes == ("cat", "dog")
    assert start.recipe["backbone"] == "resnet18"
    assert read_start(tmp_path / "d.pt", {"from": "d.pt", "classes": ["x", "y"]}).classes == ("x", "y")
    start.save(tmp_path / "start.pt")
    again = load_start(tmp_path / "start.pt")
    assert again is not None
    assert again.classes == start.classes
    assert all(torch.equal(value, again.state_dict[name]) for name, value in start.state_dict.items())


def test_no_start_is_a_file_too(tmp_path: Path) -> None:
    StartWeights({"from": None}, {}).save(tmp_path / "start.pt")
    assert load_start(tmp_path / "start.pt") is None
