"""Read `params.yaml`, check all of it, and merge the selected model's recipe for the selected dataset.

Precedence, the last wins: the recipe, the budget's preset, the recipe's `overrides` for the preset, then for
the dataset, the budget. Every value that differs from the recipe is recorded with its source.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from yaml import YAMLError

from detection.errors import ParamsError
from detection.params import schema
from detection.params.datasets import FORMATS, Budget, Dataset
from detection.params.recipe import ARCHITECTURES, Recipe
from detection.params.recipe_base import RecipeBase, stages_of
from detection.params.schema import build, check_keys, key_of, pick, refuse, validate
from detection.params.stages import Evaluate, Plots, Prepare, Pretrain, Start, Train
from detection.text import flatten

NAME = re.compile(r"[\w-]+")
PUBLISHED = "published"
"""Budget preset of a recipe's own settings."""
SMALL, FINETUNE = "small", "finetune"
"""Presets of a dataset that has none of its own, without and with `start.from`."""
STAGES = {cls.__name__.lower(): cls for cls in (Prepare, Pretrain, Start, Train, Evaluate, Plots)}
SECTIONS = ("model", "dataset", "seed", "presets", "models", "datasets", "budgets", *STAGES)


@dataclass(frozen=True, slots=True)
class Override:
    """Value that differs from the recipe's own."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """All parameters of an experiment."""

    model: str
    """Name of the recipe."""
    dataset: str
    """Name of the dataset."""
    seed: int
    """Seed of everything random in training."""
    recipe: Recipe
    """Recipe, merged for the dataset."""
    overrides: tuple[Override, ...]
    """Values that the merge changed, with their sources."""
    data: Dataset
    """Entry of the dataset."""
    prepare: Prepare
    """Reading of the raw data."""
    pretrain: Pretrain
    """Initial weights of the backbone; `method` is not `auto`, but what `auto` selects."""
    start: Start
    """Trained detector that training starts from."""
    train: Train
    """Execution of training."""
    evaluate: Evaluate
    """Scoring of the test split."""
    plots: Plots
    """Figures and HTML page."""

    def flat(self) -> dict[str, Any]:
        """Values that decide the results, by dotted key: `recipe.optimizer.lr`, `train.precision`."""
        values = flatten({k: v for k, v in asdict(self).items() if k not in ("overrides", "plots")})
        return {key_of(key): value for key, value in values.items()}


def load(path: str | Path = "params.yaml", model: str | None = None, dataset: str | None = None) -> Params:
    """Read and check a params file; `model` and `dataset` replace the names that it selects.

    All presets, models, datasets and budgets are checked, not only the selected ones.

    Raises:
        ParamsError: Unknown or missing key, name or value, with the nearest valid spelling.
    """
    file = Path(path).name
    raw = read_yaml(path)
    for key in raw:
        pick(dict.fromkeys(SECTIONS), key, str(key), "section", file)
    for key in SECTIONS:
        if key not in raw:
            raise ParamsError(f"{file}: {key}: this section is missing")
    datasets = {name: _dataset(name, values, file) for name, values in _named(raw, "datasets", file)}
    presets = {name: _preset(name, values, datasets, file) for name, values in _named(raw, "presets", file)}
    budgets = {name: _budget(name, values, datasets, presets, file) for name, values in _named(raw, "budgets", file)}
    for name in datasets:
        if name not in budgets:
            raise ParamsError(f"{file}: budgets.{name}: missing; {name}: {{}} selects the preset {SMALL}")
    recipes = {name: _Recipe(name, values, presets, budgets, file) for name, values in _named(raw, "models", file)}
    model, dataset = model or raw["model"], dataset or raw["dataset"]
    selected = pick(recipes, model, "model", "model", file)
    data = pick(datasets, dataset, "dataset", "dataset", file)
    if isinstance(raw["seed"], bool) or not isinstance(raw["seed"], int) or raw["seed"] < 0:
        raise ParamsError(f"{file}: seed: must be a whole number, at least 0, not {raw['seed']!r}")
    stages: dict[str, Any] = {key: validate(cls, raw[key], key, file) for key, cls in STAGES.items()}
    started, budget = stages["start"].from_ is not None, budgets[dataset]
    preset = budget.preset or (FINETUNE if started else SMALL)
    pick({**presets, PUBLISHED: None}, preset, f"budgets.{dataset}.preset", "preset", file)
    recipe, overrides = selected.merge(preset, dataset, budget)
    if not started and not (recipe.epochs or recipe.iterations):
        raise ParamsError(f"{file}: budgets.{dataset}.epochs: 0 trains nothing; name the detector in start.from")
    if stages["pretrain"].method == "auto":
        method = recipe.pretrained if budget == Budget(preset=PUBLISHED) else "crops"  # at its published scale
        stages["pretrain"] = replace(stages["pretrain"], method=method)
    return Params(
        model=model, dataset=dataset, seed=raw["seed"], recipe=recipe, overrides=overrides, data=data, **stages
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML 1.2 file with a mapping at the top.

    Raises:
        ParamsError: No such file, or not valid YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist; run from the repository's root") from None
    try:
        raw = schema.read(text)
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ParamsError(f"{path}:{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must be a mapping of sections")
    return raw


def _named(raw: Mapping[str, Any], section: str, file: str) -> list[tuple[str, Any]]:
    """Entries of a section by name."""
    if not isinstance(raw[section], Mapping):
        raise ParamsError(f"{file}: {section}: must be a mapping of names to entries")
    for name in raw[section]:  # DVC splits keys at dots, and its templates give a meaning to other characters
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ParamsError(f"{file}: {section}: a name has letters, digits, _ and - only, not {name!r}")
    return list(raw[section].items())


def _dataset(name: str, values: Any, file: str) -> Dataset:
    key = f"datasets.{name}"
    dataset: Dataset = validate(_subclass(FORMATS, values, key, "format", file), values, key, file)
    return dataset


def _subclass(classes: Mapping[str, type[Any]], values: Any, key: str, field: str, file: str) -> type[Any]:
    """Dataclass that a field of an entry selects."""
    if not isinstance(values, Mapping) or field not in values:
        raise ParamsError(f"{file}: {key}.{field}: missing; this key is required")
    selected: type[Any] = pick(classes, values[field], f"{key}.{field}", field, file)
    return selected


def _budget(name: str, values: Any, datasets: Mapping[str, Any], presets: Mapping[str, Any], file: str) -> Budget:
    pick(datasets, name, f"budgets.{name}", "dataset", file)
    budget = validate(Budget, values or {}, f"budgets.{name}", file)
    if budget.preset is not None:
        pick({**presets, PUBLISHED: None}, budget.preset, f"budgets.{name}.preset", "preset", file)
    return budget


def _preset(name: str, values: Any, datasets: Mapping[str, Any], file: str) -> dict[str, Any]:
    if name in datasets or name == PUBLISHED:
        raise ParamsError(f"{file}: presets.{name}: this name is taken; rename the preset")
    _refuse_fixed(values, f"presets.{name}", file)
    check_keys(RecipeBase, _with_layers(values, ""), f"presets.{name}", file)
    return dict(values)


def _with_layers(values: Any, backbone: str) -> Any:
    """Replace `trainable_layers: all` by the number of the backbone's stages."""
    if isinstance(values, Mapping) and values.get("trainable_layers") == "all":
        return {**values, "trainable_layers": stages_of(backbone)}
    return values


def _refuse_fixed(values: Any, key: str, file: str) -> None:
    for field in ("architecture", "backbone"):
        if isinstance(values, Mapping) and field in values:
            raise ParamsError(f"{file}: {key}.{field}: a recipe has one {field}; add another entry to models")


class _Recipe:
    """One entry of `models`, checked with every preset and every dataset that it has overrides for."""

    def __init__(
        self, name: str, values: Any, presets: Mapping[str, Any], budgets: Mapping[str, Budget], file: str
    ) -> None:
        self.key, self.file, self.presets = f"models.{name}", file, presets
        cls = _subclass(ARCHITECTURES, values, self.key, "architecture", file)
        own = _with_layers({k: v for k, v in values.items() if k != "overrides"}, str(values.get("backbone")))
        self.recipe: Recipe = validate(cls, own, self.key, file)
        self.overrides = values.get("overrides") or {}
        for target, changes in self.overrides.items():
            pick({**presets, **budgets}, target, f"{self.key}.overrides.{target}", "preset or dataset", file)
            _refuse_fixed(changes, f"{self.key}.overrides.{target}", file)
            if not isinstance(changes, Mapping):
                raise ParamsError(f"{file}: {self.key}.overrides.{target}: must be a mapping, not {changes!r}")
        for preset in presets:
            self.merge(preset, "", Budget())
        for dataset in self.overrides.keys() - presets.keys():
            self.merge(budgets[dataset].preset or SMALL, dataset, Budget())

    def merge(self, preset: str, dataset: str, budget: Budget) -> tuple[Recipe, tuple[Override, ...]]:
        """Return the recipe with a preset, its own overrides and a budget, and the values that changed.

        The budget's batch size scales the learning rate linearly, its image size scales `max_size`, its
        epochs scale milestones and phases.
        """
        values, sources = flatten(asdict(self.recipe)), {}
        layers = {f"presets.{preset}": self.presets.get(preset, {})}
        layers |= {f"{self.key}.overrides.{name}": self.overrides.get(name, {}) for name in (preset, dataset)}
        for source, layer in layers.items():
            for key, value in _leaves(_with_layers(layer, self.recipe.backbone)):
                values[key], sources[key] = value, source
        for key, value, source in _budget_changes(values, budget, f"budgets.{dataset}"):
            if values[key] != value:
                before = f"{sources[key]}, " if source.startswith("scaled") and key in sources else ""
                values[key], sources[key] = value, before + source
        problems: list[str] = []
        recipe: Recipe = build(type(self.recipe), _nested(values), "", problems)
        refuse([self._located(one.removeprefix("."), sources) for one in problems], self.file)
        own = flatten(asdict(self.recipe))
        changed = {key: value for key, value in flatten(asdict(recipe)).items() if value != own[key]}
        return recipe, tuple(Override(key, value, sources[key]) for key, value in changed.items())

    def _located(self, problem: str, sources: Mapping[str, str]) -> str:
        """Prefix a problem of the merged recipe with the entry that its value is from."""
        field = problem.split(":")[0]
        found = [source for key, source in sources.items() if f"{key}.".startswith(f"{field}.")]
        if found:
            return f"{found[-1]}.{problem}"
        return f"{self.key}.{problem}, with {' and '.join(sorted({*sources.values()}))}"


def _budget_changes(values: Mapping[str, Any], budget: Budget, source: str) -> Iterator[tuple[str, Any, str]]:
    """Keys, values and sources of the changes that a budget makes to a flat recipe."""
    if budget.image_size is not None and not values["fixed_size"]:
        if values["max_size"]:
            scaled = round(values["max_size"] * budget.image_size / values["image_size"])
            yield "max_size", scaled, f"scaled by {source}.image_size"
        yield "image_size", budget.image_size, source
    if budget.batch_size is not None:
        lr = values["optimizer.lr"] * budget.batch_size / values["batch_size"]
        yield "optimizer.lr", lr, f"scaled by {source}.batch_size"
        yield "batch_size", budget.batch_size, source
    if budget.epochs is not None:
        length = values["epochs"] or values["iterations"]
        if values["schedule.milestones"] and budget.epochs:
            moved = [round(m * budget.epochs / length, 3) for m in values["schedule.milestones"]]
            yield "schedule.milestones", moved, f"scaled by {source}.epochs"
        if values["schedule.phases"] and budget.epochs:
            factor = budget.epochs / length
            phases = [{**p, "until": round(p["until"] * factor, 3)} for p in values["schedule.phases"]]
            yield "schedule.phases", phases, f"scaled by {source}.epochs"
        yield "iterations", None, source
        yield "epochs", budget.epochs, source


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping; an empty mapping has none."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            if not isinstance(node.get(part), dict):  # a plain value where the recipe has a group, or vice versa
                node[part] = {}
            node = node[part]
        node[last] = value
    return tree
