"""How a recipe meets a dataset: recipe, then its `on.<dataset>`, then the dataset's budget.

Every value that differs from the recipe's own is recorded with where it came from.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from detection.params.datasets import Budget


@dataclass(frozen=True, slots=True)
class Override:
    """One value that is not the recipe's own."""

    key: str
    value: Any
    source: str


def merge(
    raw: Mapping[str, Any], budget: Budget, model: str, dataset: str
) -> tuple[dict[str, Any], list[Override]]:
    """Merge a raw recipe with its `on` entry and a budget.

    Args:
        raw: The recipe as it stands in `params.yaml`; all keys valid.
        budget: The dataset's budget.
        model: Name of the recipe.
        dataset: Name of the dataset.

    Returns:
        The merged mapping without `on`, and what was overridden. A budget's batch size scales the learning
        rate linearly, its image size scales `max_size`, its epochs scale the milestones and phases.
    """
    merged = copy.deepcopy({key: value for key, value in raw.items() if key != "on"})
    overrides: list[Override] = []
    for path, value in _leaves((raw.get("on") or {}).get(dataset) or {}):
        _put(merged, path, copy.deepcopy(value))
        overrides.append(Override(".".join(path), value, f"models.{model}.on.{dataset}"))

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
