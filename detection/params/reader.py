"""Read `params.yaml`, check all of it, and return what the chosen model and dataset come to.

How a recipe meets a dataset: recipe, then its `on.<dataset>`, then the dataset's budget.

Every value that differs from the recipe's own is recorded with where it came from.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from detection.errors import ParamsError
from detection.params import schema
from detection.params.datasets import FORMATS, Budget, Dataset
from detection.params.recipe import ARCHITECTURES, Recipe
from detection.params.schema import pick, validate
from detection.params.stages import Evaluate, Plots, Prepare, Pretrain, Train

NAME = re.compile(r"[\w-]+")
SECTIONS = (
    "model",
    "dataset",
    "seed",
    "models",
    "datasets",
    "budgets",
    "prepare",
    "pretrain",
    "train",
    "evaluate",
    "plots",
)


@dataclass(frozen=True, slots=True)
class Override:
    """One value that is not the recipe's own."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """Everything an experiment is made of."""

    model: str
    """Name of the recipe."""
    dataset: str
    """Name of the dataset."""
    seed: int
    """Seed of everything random in training."""
    recipe: Recipe
    """The recipe, merged for the dataset."""
    overrides: tuple[Override, ...]
    """What the merge changed, and where each value came from."""
    data: Dataset
    """The dataset's entry."""
    prepare: Prepare
    """How the raw data is read."""
    pretrain: Pretrain
    """Where the backbone's weights come from."""
    train: Train
    """How training is run."""
    evaluate: Evaluate
    """How the test split is scored."""
    plots: Plots
    """Figures and page."""

    def flat(self) -> dict[str, Any]:
        """Every value under its dotted key, for a tracker: `recipe.optimizer.lr`, `train.precision`."""
        return flatten({k: v for k, v in asdict(self).items() if k not in ("overrides", "plots")})


def load(path: str | Path = "params.yaml", model: str | None = None, dataset: str | None = None) -> Params:
    """Read and check a params file; `model` and `dataset` stand in for the names it chooses.

    All models, datasets and budgets are checked, not only the chosen ones: a slip shows the day it is made.

    Raises:
        ParamsError: An unknown or missing key, name or value, with the nearest valid spelling.
    """
    file = Path(path).name
    raw = read_yaml(path)
    for key in raw:
        pick(dict.fromkeys(SECTIONS), key, str(key), "section", file)
    for key in SECTIONS:
        if key not in raw:
            raise ParamsError(f"{file}: {key}: this section is needed and missing")
    datasets = {name: _dataset(name, values, file) for name, values in _entries(raw, "datasets", file)}
    budgets = {
        name: validate(Budget, values or {}, f"budgets.{name}", file)
        for name, values in _entries(raw, "budgets", file)
    }
    for name in datasets:
        if name not in budgets:
            raise ParamsError(
                f"{file}: budgets.{name} is missing; write {name}: {{}} for the recipe's own scale"
            )
    for name in budgets:
        pick(datasets, name, f"budgets.{name}", "dataset", file)
    for name, values in _entries(raw, "models", file):
        _check_model(name, values, datasets, file)
    model, dataset = model or raw["model"], dataset or raw["dataset"]
    chosen = pick(raw["models"], model, "model", "model", file)
    data = pick(datasets, dataset, "dataset", "dataset", file)
    if isinstance(raw["seed"], bool) or not isinstance(raw["seed"], int):
        raise ParamsError(f"{file}: seed: must be a whole number, not {raw['seed']!r}")
    if raw["seed"] < 0:
        raise ParamsError(f"{file}: seed: must be at least 0, not {raw['seed']}")
    recipe, overrides = _merged(model, chosen, dataset, budgets[dataset], file)
    return Params(
        model=model,
        dataset=dataset,
        seed=raw["seed"],
        recipe=recipe,
        overrides=tuple(overrides),
        data=data,
        prepare=validate(Prepare, raw["prepare"], "prepare", file),
        pretrain=validate(Pretrain, raw["pretrain"], "pretrain", file),
        train=validate(Train, raw["train"], "train", file),
        evaluate=validate(Evaluate, raw["evaluate"], "evaluate", file),
        plots=validate(Plots, raw["plots"], "plots", file),
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file by YAML 1.2's rules, as DVC does: `1e-05` is a number, `off` and `1:2` are words."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path} is not here; run from the repository's root") from None
    try:
        raw = schema.read(text)
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ParamsError(f"{path}:{line} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path} must be a mapping of sections")
    return raw


def _entries(raw: Mapping[str, Any], section: str, file: str) -> list[tuple[str, Any]]:
    if not isinstance(raw[section], Mapping):
        raise ParamsError(f"{file}: {section} must be a mapping of names")
    for name in raw[section]:  # DVC takes a dot for a step down, and marks have meanings in its templates
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ParamsError(f"{file}: {section}: a name is of letters, digits, _ and -, not {name!r}")
    return list(raw[section].items())


def _dataset(name: str, values: Any, file: str) -> Dataset:
    key = f"datasets.{name}"
    kind = pick(FORMATS, _field(values, "format", key, file), f"{key}.format", "format", file)
    dataset: Dataset = validate(kind, values, key, file)
    return dataset


def _check_model(name: str, values: Any, datasets: Mapping[str, Dataset], file: str) -> None:
    """Check the recipe as published, and as each of its `overrides` entries leaves it."""
    _merged(name, values, "", Budget(), file)
    for dataset in values.get("overrides") or {}:
        pick(datasets, dataset, f"models.{name}.overrides.{dataset}", "dataset", file)
        for fixed in ("architecture", "backbone"):
            if fixed in (values["overrides"][dataset] or {}):
                where = f"models.{name}.overrides.{dataset}.{fixed}"
                raise ParamsError(f"{file}: {where}: a recipe has one {fixed}; make another entry of models")
        _merged(name, values, dataset, Budget(), file)


def _merged(
    model: str, values: Any, dataset: str, budget: Budget, file: str
) -> tuple[Recipe, list[Override]]:
    key = f"models.{model}"
    architecture = _field(values, "architecture", key, file)
    kind = pick(ARCHITECTURES, architecture, f"{key}.architecture", "architecture", file)
    own: Recipe = validate(kind, {k: v for k, v in values.items() if k != "overrides"}, key, file)
    merged, overrides = merge({**asdict(own), "overrides": values.get("overrides")}, budget, model, dataset)
    where = f"{key}.overrides.{dataset}" if dataset else key
    recipe: Recipe = validate(kind, merged, where, file)
    return recipe, overrides


def _field(values: Any, name: str, key: str, file: str) -> Any:
    if not isinstance(values, Mapping) or name not in values:
        raise ParamsError(f"{file}: {key}.{name}: this key is needed and missing")
    return values[name]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one of dotted keys to plain values."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows |= flatten(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return rows


def merge(
    raw: Mapping[str, Any], budget: Budget, model: str, dataset: str
) -> tuple[dict[str, Any], list[Override]]:
    """Merge a raw recipe with its `overrides` entry and a budget.

    Args:
        raw: The recipe as it stands in `params.yaml`; all keys valid.
        budget: The dataset's budget.
        model: Name of the recipe.
        dataset: Name of the dataset.

    Returns:
        The merged mapping without `overrides`, and what was overridden. A budget's batch size scales the
        learning rate linearly, its image size scales `max_size`, its epochs scale the milestones and phases.
    """
    merged = copy.deepcopy({key: value for key, value in raw.items() if key != "overrides"})
    overrides: list[Override] = []
    for path, value in _leaves((raw.get("overrides") or {}).get(dataset) or {}):
        _put(merged, path, copy.deepcopy(value))
        overrides.append(Override(".".join(path), value, f"models.{model}.overrides.{dataset}"))

    def override(key: str, value: Any, source: str) -> None:
        if _get(merged, key.split(".")) != value:
            _put(merged, key.split("."), value)
            overrides.append(Override(key, value, source))

    source = f"budgets.{dataset}"
    if budget.image_size is not None and not merged.get("fixed_size"):
        if max_size := merged.get("max_size"):
            scaled = round(max_size * budget.image_size / merged["image_size"])
            override("max_size", scaled, f"{source}.image_size, in proportion")
        override("image_size", budget.image_size, source)
    if budget.batch_size is not None:
        optimizer = merged.get("optimizer") or {}
        if "lr" in optimizer:
            lr = optimizer["lr"] * budget.batch_size / merged["batch_size"]
            override("optimizer.lr", lr, f"{source}.batch_size, linear scaling")
        override("batch_size", budget.batch_size, source)
    if budget.epochs is not None:
        length = merged.get("epochs") or merged.get("iterations")
        milestones = (merged.get("schedule") or {}).get("milestones")
        if length and milestones:
            moved = [round(m * budget.epochs / length, 3) for m in milestones]
            override("schedule.milestones", moved, f"{source}.epochs, in proportion")
        phases = (merged.get("schedule") or {}).get("phases")
        if length and phases:
            share = budget.epochs / length
            ends = [{**phase, "until": round(phase["until"] * share, 3)} for phase in phases]
            override("schedule.phases", ends, f"{source}.epochs, in proportion")
        override("iterations", None, source)
        override("epochs", budget.epochs, source)
    return merged, overrides


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _get(tree: Mapping[str, Any], path: list[str]) -> Any:
    for part in path[:-1]:
        tree = tree.get(part) or {}
    return tree.get(path[-1])


def _put(tree: dict[str, Any], path: list[str] | tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = value
