from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from detection.errors import ParamsError
from detection.params import load, schema
from detection.params.recipe_base import stages_of
from detection.params.stages import Checks

Edit = tuple[str, Any]


@pytest.fixture
def edited(tmp_path: Path) -> Any:
    """Write a copy of params.yaml with some dotted keys changed; returns its path."""

    def edit(*edits: Edit) -> Path:
        raw = schema.read(Path("params.yaml").read_text())
        for key, value in edits:
            *path, last = key.split(".")
            node = raw
            for part in path:
                node = node.setdefault(part, {})
            if value is KeyError:
                del node[last]
            else:
                node[last] = value
        target = tmp_path / "params.yaml"
        target.write_text(yaml.dump(raw, Dumper=yaml.CSafeDumper))
        return target

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("model", "retinanett"), "model: unknown model 'retinanett'; did you mean 'retinanet'?"),
        (("dataset", "shape"), "dataset: unknown dataset 'shape'; did you mean 'shapes'?"),
        (("models.retinanet.lrr", 1), "models.retinanet.lrr: unknown key"),
        (("models.retinanet.optimizer.lrr", 1), "optimizer.lrr: unknown key; did you mean 'lr'?"),
        (("models.retinanet.optimizer.lr", "0.1"), "optimizer.lr: Expected float, got str: '0.1'"),
        (("models.retinanet.optimizer.name", "sgdd"), "did you mean 'sgd'? Possible: sgd, adam, adamw"),
        (("models.retinanet.image_size", KeyError), "image_size: missing"),
        (("models.retinanet.image_size", 0), "image_size: must be at least 1, not 0"),
        (("models.retinanet.iterations", 10), "give either epochs or iterations"),
        (("models.retinanet.backbone", "vgg16"), "retinanet does not support vgg16; possible: resnet18"),
        (("models.retinanet.anchors.sizes", [[32]]), "needs one entry per pyramid level: 5, not 1"),
        (("models.retinanet.overrides.shapes.x", 1), "models.retinanet.overrides.shapes.x: unknown key"),
        (
            ("models.retinanet.overrides.shapes.backbone", "resnet18"),
            "overrides.shapes.backbone: a recipe has one backbone",
        ),
        (("datasets.my data", {}), "datasets: a name has letters, digits, _ and - only, not 'my data'"),
        (("models.retinanet.overrides.shape", {}), "overrides.shape: unknown preset or dataset 'shape'"),
        (("models.ssd300.resize", "keep"), "set resize: stretch"),
        (("models.ssd300.image_size", 512), "do not fit 512 pixels; the steps are for another image_size"),
        (("models.ssd300.image_size", 200), "200 pixels leave no cell on the last"),
        (("models.ssd300.default_boxes.scales", [0.1, 0.2]), "needs 7 entries"),
        (("models.ssd300.reduced_tail", True), "reduced_tail: applies to MobileNet"),
        (("models.retinanet_257.p6_from", "p5"), "needs fpn_levels: [3, 4, 5] and p6_from: c5"),
        (("models.retinanet_257.anchors.strides", [8]), "needs one entry per pyramid level: 4, not 1"),
        (("models.retinanet.bg_iou", 0.6), "bg_iou: is above fg_iou (0.6 > 0.5)"),
        (("models.retinanet.anchors.sizes", [[32], [64], [128], [256], [1, 2]]), "share one head"),
        (("models.fcos.fpn_channels", 100), "100 is not a multiple"),
        (("models.fasterrcnn.backbone", "vgg16"), "features: fpn does not support vgg16; possible: resnet18"),
        (("models.fasterrcnn.roi.pooling", "roi_pool"), "roi_pool needs a single map"),
        (("models.fasterrcnn.roi.head", "layer4"), "layer4 needs features: c4"),
        (("models.fasterrcnn.anchors.strides", [16]), "anchors.strides: needs one entry per pyramid level: 5"),
        (("models.fasterrcnn.anchors.sizes", [[8, 9], [8], [8], [8], [8]]), "share one head"),
        (("models.fasterrcnn.rpn.smooth_l1_beta", -1), "smooth_l1_beta: must be at least 0"),
        (("models.fasterrcnn.anchors.sizes", [[0], [8], [8], [8], [8]]), "anchors.sizes: must be above 0"),
        (("models.fasterrcnn.anchors.sizes", [[], [], [], [], []]), "there would be no anchors"),
        (("models.retinanet.anchors.aspect_ratios", []), "aspect_ratios: is empty"),
        (("models.ssd300.default_boxes.aspect_ratios", [[-2], [], [], [], [], []]), "aspect_ratios: must be above 0"),
        (("models.ssd300.image_std", [1, 0, 1]), "image_std: must be above 0"),
        (("models.fasterrcnn.optimizer.lr", -1), "optimizer.lr: must be above 0"),
        (("models.fasterrcnn.optimizer.momentum", 1), "optimizer.momentum: must be at least 0 and below 1, not 1"),
        (("models.fasterrcnn.optimizer.weight_decay", -1), "weight_decay: must be at least 0"),
        (("models.retinanet_v2.optimizer", {"name": "adamw", "nesterov": True}), "optimizer.nesterov: needs name: sgd"),
        (
            ("models.fasterrcnn.schedule.phases", [{"until": 3, "lr_factor": -1}]),
            "schedule.phases[0].lr_factor: must be at least 0",
        ),
        (("models.fasterrcnn.rpn.bg_iou", 0.8), "rpn.bg_iou: is above fg_iou (0.8 > 0.7)"),
        (("models.fasterrcnn.roi.positive_fraction", 25), "must be at least 0 and at most 1, not 25"),
        (("models.fasterrcnn.roi.batch_size_per_image", 0), "roi.batch_size_per_image: must be at least 1, not 0"),
        (("models.fasterrcnn.fpn_levels", [2, 4]), "must be consecutive, from resnet50's 2 to 5"),
        (("models.fasterrcnn.trainable_layers", 6), "resnet50 has 5 stages: 0 to 5"),
        (("models.fasterrcnn_vgg16.backbone", "mobilenet_v3_large"), "possible: resnet18, resnet34"),
        (("models.fasterrcnn_vgg16.anchors.sizes", [[8], [9]]), "needs one entry per map"),
        (("models.fasterrcnn_vgg16.fpn_norm", "batch"), "features: c4 has no FPN"),
        (
            ("models.fasterrcnn_vgg16.schedule.phases", [{"until": 3}, {"until": 2}]),
            "schedule.phases: each must end after the one before",
        ),
        (("train.precision", "bf17"), "'bf17' is not possible; did you mean 'bf16'?"),
        (("train.accumulate", True), "train.accumulate: Expected int, got bool: True"),
        (("budgets.shapes.epoch", 3), "budgets.shapes.epoch: unknown key; did you mean 'epochs'?"),
        (("budgets.shapes", KeyError), "budgets.shapes: missing"),
        (("seed", 1.5), "seed: must be a whole number"),
        (("seed", -1), "seed: must be a whole number, at least 0, not -1"),
        (("train.validate_every", 0), "train.validate_every: must be at least 1, not 0"),
        (("train.early_stop", {"patience": 0}), "train.early_stop.patience: must be at least 1, not 0"),
        (("train.ema", 2), "train.ema: must be at least 0 and at most 1, not 2"),
        (("train.clip_gradients", -1), "train.clip_gradients: must be above 0, not -1"),
        (("evaluate.batch_size", 0), "evaluate.batch_size: must be at least 1, not 0"),
        (("evaluate", KeyError), "evaluate: this section is missing"),
        (("extra", 1), "unknown section 'extra'"),
        (("presets", KeyError), "presets: this section is missing"),
        (("presets.small.optimiser", {}), "presets.small.optimiser: unknown key; did you mean 'optimizer'?"),
        (("presets.small.optimizer.lr", 0), "presets.small.optimizer.lr: must be above 0, not 0"),
        (("presets.small.fpn_channels", 64), "presets.small.fpn_channels: unknown key"),
        (("presets.small.backbone", "resnet18"), "presets.small.backbone: a recipe has one backbone"),
        (("presets.small.trainable_layers", 6), "presets.small.trainable_layers: resnet50 has 5 stages"),
        (("presets.small.augmentation", "multiscale"), "presets.small.augmentation: multiscale varies"),
        (("presets.shapes", {}), "presets.shapes: this name is taken"),
        (("presets.published", {}), "presets.published: this name is taken"),
        (("budgets.shapes.preset", "smal"), "shapes.preset: unknown preset 'smal'; did you mean 'small'?"),
        (("models.retinanet.overrides.shapes.fg_iou", 0.3), "retinanet.bg_iou: is above fg_iou (0.4 > 0.3)"),
        (("models.retinanet.overrides.small", 3), "overrides.small: must be a mapping, not 3"),
        (("models.retinanet.overrides.small.optimizer", 3), "overrides.small.optimizer: must be a mapping"),
        (("models.retinanet.overrides.small.image_size", {"x": 1}), "small.image_size: Expected int"),
    ],
)
def test_an_error_names_the_key_and_the_nearest_spelling(edited: Any, edit: Edit, words: str) -> None:
    with pytest.raises(ParamsError) as raised:
        load(edited(edit))
    assert words in str(raised.value)
    assert str(raised.value).startswith("params.yaml: ")


def test_all_problems_of_a_section_are_reported_at_once(edited: Any) -> None:
    with pytest.raises(ParamsError) as raised:
        load(edited(("train.precison", "x"), ("train.monitor", "ap"), ("train.log_every", "x")))
    assert len(str(raised.value).splitlines()) == 3


def test_yaml_1_2_is_read(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text()
    assert "weight_decay: 1e-4" in text  # YAML 1.1 would read this as a string
    assert load().recipe.optimizer.weight_decay > 0
    broken = tmp_path / "params.yaml"
    broken.write_text("a: [1\nb: 2")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load(broken)
    with pytest.raises(ParamsError, match="does not exist"):
        load(tmp_path / "none.yaml")


def test_precedence_and_sources(edited: Any) -> None:
    path = edited(
        ("budgets.shapes", {"image_size": 100, "batch_size": 4, "epochs": 13}),
        (
            "models.retinanet.overrides",
            {
                "small": {"optimizer": {"lr": 0.07, "momentum": 0.8}, "nms_threshold": 0.4},
                "shapes": {"optimizer": {"lr": 0.08}, "image_size": 640, "trainable_layers": 2},
            },
        ),
    )
    params = load(path, model="retinanet", dataset="shapes")
    recipe = params.recipe
    assert recipe.bn == "live"
    assert recipe.nms_threshold == 0.4
    assert recipe.trainable_layers == 2
    assert recipe.image_size == 100
    assert recipe.max_size == round(1333 * 100 / 640)
    assert recipe.batch_size == 4
    assert recipe.optimizer.lr == pytest.approx(0.08 * 4 / 8)  # relative to the preset's batch size
    assert recipe.optimizer.momentum == 0.8
    assert recipe.detections_per_image == 300
    assert (recipe.epochs, recipe.schedule.milestones) == (13, (8, 11))
    sources = {one.key: one.source for one in params.overrides}
    assert sources["bn"] == "presets.small"
    assert sources["nms_threshold"] == "models.retinanet.overrides.small"
    assert sources["trainable_layers"] == "models.retinanet.overrides.shapes"
    assert sources["image_size"] == "budgets.shapes"
    assert sources["optimizer.lr"].endswith(", scaled by budgets.shapes.batch_size")
    assert sources["schedule.milestones"] == "scaled by budgets.shapes.epochs"
    values = {one.key: one.value for one in params.overrides}
    assert "detections_per_image" not in values, "it is the recipe's own"
    assert values["optimizer.lr"] == recipe.optimizer.lr


def test_a_published_budget_keeps_the_recipe(edited: Any) -> None:
    path = edited(("budgets.shapes", {"preset": "published"}))
    params = load(path, model="fcos")
    assert (params.recipe.bn, params.recipe.optimizer.name, params.recipe.epochs) == ("frozen", "sgd", 26)
    assert params.overrides == ()


def test_a_default_learning_rate_is_scaled_too(edited: Any) -> None:
    path = edited(
        ("models.retinanet.optimizer", {}),
        ("models.retinanet.overrides", {}),
        ("budgets.shapes", {"preset": "published", "batch_size": 8}),
    )
    assert load(path, model="retinanet").recipe.optimizer.lr == pytest.approx(0.01)


@pytest.fixture(scope="module")
def new_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = schema.read(Path("params.yaml").read_text())
    raw["datasets"]["mine"] = {"format": "voc", "path": "mine", "train": ["./"], "holdout_fraction": 0.1}
    raw["budgets"]["mine"] = {"image_size": 160, "batch_size": 8, "epochs": 15}
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(yaml.dump(raw, Dumper=yaml.CSafeDumper))
    return path


@pytest.mark.parametrize("model", schema.read(Path("params.yaml").read_text())["models"])
def test_a_new_dataset_gets_the_preset_for_small_data(new_dataset: Path, model: str) -> None:
    recipe = load(new_dataset, model=model, dataset="mine").recipe
    assert recipe.optimizer.name == "adamw"
    vgg = recipe.backbone == "vgg16"  # has no normalization
    assert recipe.optimizer.lr == (2e-4 if vgg else 2.4e-3 if model == "retinanet_257" else 1.2e-3)
    assert recipe.schedule.name == "cosine"
    assert recipe.schedule.phases == ()
    assert (recipe.bn, recipe.augmentation) == ("live", "flip")
    assert recipe.trainable_layers == stages_of(recipe.backbone)
    assert getattr(recipe, "head_norm", "group") == "group"
    assert (recipe.epochs, recipe.iterations, recipe.batch_size) == (15, None, 8)


def test_all_layers_of_a_preset_are_the_stages_of_the_backbone(edited: Any) -> None:
    for backbone, stages in (("resnet18", 5), ("mobilenet_v3_small", 6)):
        path = edited(("models.fasterrcnn.backbone", backbone))
        assert load(path, model="fasterrcnn").recipe.trainable_layers == stages


def test_a_fixed_size_is_not_changed_by_a_budget(edited: Any) -> None:
    path = edited(("budgets.shapes", {"image_size": 100}))
    assert load(path, model="ssd300", dataset="shapes").recipe.image_size == 300


def test_an_epoch_budget_replaces_iterations(edited: Any) -> None:
    path = edited(
        ("models.retinanet.epochs", None),
        ("models.retinanet.iterations", 1000),
        ("models.retinanet.schedule.milestones", [600]),
        ("budgets.shapes", {"epochs": 10}),
    )
    recipe = load(path, model="retinanet").recipe
    assert (recipe.epochs, recipe.iterations, recipe.schedule.milestones) == (10, None, (6,))


def test_every_model_loads_with_every_dataset() -> None:
    raw = schema.read(Path("params.yaml").read_text())
    for model in raw["models"]:
        for dataset in raw["datasets"]:
            assert load(model=model, dataset=dataset).recipe.batch_size > 0


def test_flat_params_have_a_scalar_or_list_under_each_key() -> None:
    flat = load().flat()
    assert flat["recipe.optimizer.lr"] == load().recipe.optimizer.lr
    assert not any(isinstance(value, dict | tuple) for value in flat.values())


@pytest.mark.parametrize("section", ["prepare", "pretrain", "train", "evaluate", "plots"])
def test_every_key_of_a_section_is_in_the_file(section: str) -> None:
    """`dvc exp run -S` changes existing keys only."""
    raw = schema.read(Path("params.yaml").read_text())[section]
    assert raw.keys() == {field.name for field in fields(getattr(load(), section))}


def test_every_check_is_in_the_file_with_its_default() -> None:
    raw = schema.read(Path("params.yaml").read_text())["prepare"]["checks"]
    assert raw == asdict(Checks())


def test_dvc_changes_one_line(tmp_path: Path) -> None:
    """`dvc exp run -S` writes the whole file, lists as plain ones: in that layout `git diff` shows one line."""
    copy, text = tmp_path / "params.yaml", Path("params.yaml").read_text()
    copy.write_text(text)
    apply_overrides(str(copy), ["model=retinanet"])
    assert copy.read_text() == text.replace(f"model: {load().model}\n", "model: retinanet\n", 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models.retinanet.overrides.shapes.optimizer.lr", 5e-4),
        ("presets.small.optimizer.lr", 6e-4),
        ("models.ssd300.overrides.small.optimizer.lr", 1e-4),
    ],
)
def test_dvc_sets_a_nested_value(tmp_path: Path, key: str, value: float) -> None:
    copy = tmp_path / "params.yaml"
    copy.write_text(Path("params.yaml").read_text())
    apply_overrides(str(copy), [f"{key}={value}"])
    model = key.split(".")[1] if key.startswith("models") else "fcos"
    before, after = (load(path, model=model, dataset="shapes") for path in ("params.yaml", copy))
    assert after.recipe == before.recipe.update({"optimizer.lr": value})
    assert asdict(after.train) == asdict(before.train)


@pytest.mark.parametrize("name", ["v1.0", "a/b", "${x}", 2007])
def test_a_name_with_a_meaning_for_dvc_is_refused(edited: Any, name: object) -> None:
    """DVC reads `datasets.v1.0` as the key 0 in v1."""
    with pytest.raises(ParamsError, match="budgets: a name has letters"):
        load(edited(("budgets", {name: {}})))


@pytest.mark.parametrize(
    ("model", "dataset", "method"),
    [
        ("fasterrcnn_resnet18", "shapes", "crops"),
        ("retinanet", "bccd", "crops"),
        ("fasterrcnn", "coco2017", "published"),
        ("ssd300", "voc0712", "published"),
        ("retinanet_257", "voc2012", "imagefolder"),
        ("retinanet_257", "shapes", "crops"),
    ],
)
def test_auto_is_the_published_start_where_the_recipe_was_published(model: str, dataset: str, method: str) -> None:
    assert load(model=model, dataset=dataset).pretrain.method == method


def test_a_method_that_is_set_is_kept(edited: Any) -> None:
    path = edited(("pretrain.method", "none"))
    assert load(path, model="ssd300", dataset="voc0712").pretrain.method == "none"
    path = edited(("pretrain.method", "file"), ("pretrain.file", "weights/vgg16.pth"))
    assert load(path, model="ssd300", dataset="voc0712").pretrain.file == "weights/vgg16.pth"
    with pytest.raises(ParamsError, match=r"pretrain\.file: method: file needs the path"):
        load(edited(("pretrain.method", "file")))
