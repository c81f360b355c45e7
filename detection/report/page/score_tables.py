"""The page's tables as plain rows, each from the file that holds it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection.report.page.metric_docs import NAMES, SCORES
from detection.report.readers import read_json, read_table

Row = dict[str, Any]
NOTHING = "—"
"""Stands where there is no number."""
CLASS_COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "voc_ap50_11pt": "VOC 11-point",
    "voc_ap50_area": "VOC area",
}


def scores(reports: Path) -> list[Row]:
    """The fourteen numbers; [] before `evaluate`.

    Each has `key`, `name`, `value` (None: nothing to measure), `interval` (low and high, or None) and `text`.
    """
    metrics = read_json(reports / "evaluation/metrics.json")
    if not metrics:
        return []
    spread = read_json(reports / "evaluation/intervals.json").get("stats", {})
    return [
        {
            "key": key,
            "name": NAMES.get(key, key),
            "value": _number(metrics.get(key)),
            "interval": interval(spread.get(key)),
            "text": text,
        }
        for key, text in SCORES.items()
    ]


def interval(spread: Mapping[str, float | None] | None) -> tuple[float, float] | None:
    """Low and high of an entry of `intervals.json`, where there are any."""
    low, high = (spread or {}).get("low"), (spread or {}).get("high")
    return None if low is None or high is None else (low, high)


def classes(reports: Path) -> list[Row]:
    """`name`, `objects`, `values` (see `CLASS_COLUMNS`), `interval` of AP; best first, those without last."""
    table = read_table(reports / "evaluation/per_class.csv")
    if table is None:
        return []
    spread = read_json(reports / "evaluation/intervals.json").get("per_class", {}).get("AP", {})
    table = table.sort_values("AP", ascending=False, kind="stable", na_position="last")
    return [
        {
            "name": str(row["class"]),
            "objects": int(row["objects"]),
            "values": [_number(row[key]) for key in CLASS_COLUMNS],
            "interval": interval(spread.get(str(row["class"]))),
        }
        for row in table.to_dict("records")
    ]


def errors(reports: Path) -> tuple[list[str], list[Row]]:
    """Column names, and `name` and `values` of each class: how many detections are wrong in which way."""
    table = read_table(reports / "evaluation/errors_per_class.csv")
    if table is None:
        return [], []
    columns = [name for name in table.columns if name != "class"]
    rows = [
        {"name": str(row["class"]), "values": [int(row[name]) for name in columns]}
        for row in table.to_dict("records")
    ]
    return columns, rows


def speed(reports: Path) -> list[tuple[str, str, str]]:
    """Name, value and explanation of the detector's size and speed; [] where nothing was measured."""
    found = read_json(reports / "evaluation/speed.json")
    if not found:
        return []
    rows = [("parameters", f"{found['parameters']:,}", f"{found['weights_mib']:.1f} MiB in memory")]
    if "latency_ms" in found:
        rows += _timed(found)
    count = found.get("threads", 0)
    threads = f", {count} thread{'s' * (count > 1)}" if count else ""
    rows.append(("measured on", found["device"] + threads, f"{found['precision']}, torch {found['torch']}"))
    return rows


def _timed(found: Row) -> list[tuple[str, str, str]]:
    height, width = found["image_size"]
    latency, throughput = found["latency_ms"], found["throughput"]
    return [
        ("work", f"{found['gflops']:.1f} GFLOPs", f"for a picture of {width} by {height} pixels"),
        (
            "latency",
            f"{latency['median']:.1f} ms, p95 {latency['p95']:.1f} ms",
            f"one picture at a time: the median of {latency['rounds']} rounds, and what 95 % of them keep to",
        ),
        (
            "throughput",
            f"{throughput['images_per_s']:.1f} pictures/s, slowest {throughput['slowest']:.1f}",
            f"{throughput['batch_size']} at a time: the median of {throughput['rounds']} rounds, the slowest",
        ),
        ("memory", f"{found['peak_mib']:,.0f} MiB", "at most, of the GPU; on a CPU of the whole process"),
    ]


def recipe(reports: Path) -> list[Row]:
    """`key`, `value` and `source` (who overrode it, else empty) of every value of the merged recipe."""
    made_of = read_json(reports / "train/recipe.json")
    sources = {one["key"]: one["source"] for one in made_of.get("overrides", [])}
    return [
        {"key": key, "value": _text(value), "source": sources.get(key, "")}
        for key, value in flatten(made_of.get("recipe", {}))
    ]


def dataset(card: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the dataset's card: what it is, and the value of each split."""
    splits = [split for split in card.get("splits", {}).values() if split]
    if not splits:
        return []
    rows = [(name, [_count(split.get(key)) for split in splits]) for key, name in COUNTS.items()]
    rows += [(name, [_spread(split.get(key), unit) for split in splits]) for key, name, unit in SPREADS]
    rows += [(name, [_share(split.get(key)) for split in splits]) for key, name in SHARES.items()]
    return [(name, values) for name, values in rows if any(value != NOTHING for value in values)]


COUNTS = {"images": "images", "empty_images": "pictures without objects", "objects": "objects"}
SPREADS = (
    ("objects_per_image", "objects a picture", ""),
    ("image_side_px", "longer side of a picture", " px"),
    ("box_side_px", "side of an object (√area)", " px"),
    ("box_side_fraction", "its longer side, of the picture's", "%"),
)
SHARES = {
    "overlapping": "objects that overlap another",
    "at_border": "objects at the border",
    "difficult": "marked difficult",
    "crowd": "marked crowd",
}


def three_digits(value: float | None) -> str:
    """A score as the page has it."""
    return NOTHING if value is None else f"{value:.3f}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted keys, in their order."""
    rows: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _text(value: Any) -> str:
    """As `params.yaml` would say it, floats without binary noise."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def _spread(value: Mapping[str, float] | None, unit: str) -> str:
    """Median, and the range that nine of ten lie in."""
    if value is None:
        return NOTHING
    scale = 100 if unit == "%" else 1
    median, low, high = (f"{value[name] * scale:.3g}" for name in ("median", "q05", "q95"))
    return f"{median}{unit}" if low == high == median else f"{median}{unit} ({low} to {high})"
