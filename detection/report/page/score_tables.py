"""Rows of the tables of the page and of the model card, each from the file that holds its numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection.evaluation.analysis.tables import BACKGROUND_ROW, MISSED_COLUMN
from detection.files import read_json, read_table
from detection.report.charts.experiment_charts import bin_name
from detection.text import flatten, number

Row = dict[str, Any]
MISSING = "—"
"""Placeholder for a missing number."""
SCORES = {
    "AP": "COCO's primary metric: average precision, mean over IoU 0.50 to 0.95 and over the classes.",
    "AP50": "Average precision at IoU 0.50.",
    "AP75": "Average precision at IoU 0.75: needs boxes that fit tightly.",
    "AP_small": "AP of objects smaller than 32 × 32 pixels.",
    "AP_medium": "AP of objects from 32 × 32 to 96 × 96 pixels.",
    "AP_large": "AP of objects larger than 96 × 96 pixels.",
    "AR1": "Average recall, mean over IoU 0.50 to 0.95, with one detection per image.",
    "AR10": "Average recall with at most 10 detections per image.",
    "AR100": "Average recall with at most 100 detections per image.",
    "AR_small": "Average recall of objects smaller than 32 × 32 pixels.",
    "AR_medium": "Average recall of objects from 32 × 32 to 96 × 96 pixels.",
    "AR_large": "Average recall of objects larger than 96 × 96 pixels.",
    "voc_ap50_11pt": "Pascal VOC 2007's average precision at IoU 0.50, interpolated at eleven recalls.",
    "voc_ap50_area": "Pascal VOC 2010's average precision at IoU 0.50: area under the curve.",
}
"""Metrics of `evaluation/metrics.json`, in its order, with their definitions."""
NAMES = {"voc_ap50_11pt": "VOC 11-point", "voc_ap50_area": "VOC area"}
"""Display names of metrics where they differ from the keys."""
HEADLINES = {
    "AP": "COCO, IoU 0.50–0.95",
    "AP50": "COCO, IoU 0.50",
    "AP75": "COCO, IoU 0.75",
    "voc_ap50_11pt": "VOC 2007, IoU 0.50",
}
"""Metrics at the top of the page, with a short definition."""
CLASS_COLUMNS = {name: NAMES.get(name, name) for name in ("AP", "AP50", "AP75", *NAMES)}
TOTALS = ("false_positives", "false_negatives")
"""Rows of `errors.csv` that sum several error types."""
DATASET_STATISTICS = {
    "images": ("images", ""),
    "empty_images": ("images without objects", ""),
    "objects": ("objects", ""),
    "objects_per_image": ("objects per image", ""),
    "image_side_px": ("longer side of an image", " px"),
    "box_side_px": ("object size (√area)", " px"),
    "box_side_fraction": ("longer side of a box / longer side of the image", "%"),
    "overlapping": ("objects overlapping another", "%"),
    "at_border": ("objects at the image border", "%"),
    "difficult": ("difficult objects", "%"),
    "crowd": ("crowd objects", "%"),
}
"""Keys of a split in the dataset card: name and unit."""


def score(value: float | None) -> str:
    """Format a score with three decimals."""
    return number(value, missing=MISSING)


def scores(reports: Path) -> list[Row]:
    """The metrics: `key`, `name`, `value`, `interval` (low and high, or None), `text`."""
    metrics = read_json(reports / "evaluation/metrics.json")
    if not metrics:
        return []
    intervals = read_json(reports / "evaluation/tables/intervals.json").get("stats", {})
    return [
        {
            "key": key,
            "name": NAMES.get(key, key),
            "value": metrics.get(key),
            "interval": interval(intervals.get(key)),
            "text": text,
        }
        for key, text in _definitions(metrics).items()
    ]


def _definitions(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Metrics with their definitions; the numbers of detections per image may be others than COCO's."""
    if metrics.keys() <= SCORES.keys():
        return SCORES
    other = "Average recall with at most {} detections per image."
    return {key: SCORES.get(key) or other.format(key.removeprefix("AR")) for key in metrics}


def slices(reports: Path) -> list[Row]:
    """`attribute`, `value`, `images`, `objects`, `scores` (name, value, interval) of each slice."""
    table = read_table(reports / "evaluation/tables/slices.csv")
    if table is None:
        return []
    names = [name for name in table.columns if f"{name}_low" in table.columns]
    rows = []
    for row in table.to_dict("records"):
        scores = [
            {"name": NAMES.get(name, name), "value": row[name], "interval": (row[f"{name}_low"], row[f"{name}_high"])}
            for name in names
        ]
        rows.append({key: row[key] for key in ("attribute", "value", "images", "objects")} | {"scores": scores})
    return rows


def interval(entry: Mapping[str, float | None] | None) -> tuple[float, float] | None:
    """Low and high of an entry of `intervals.json`, or None."""
    low, high = (entry or {}).get("low"), (entry or {}).get("high")
    return None if low is None or high is None else (low, high)


def classes(reports: Path) -> list[Row]:
    """`name`, `objects`, `values` (see `CLASS_COLUMNS`), `interval` of AP; best class first, NaN last."""
    table = read_table(reports / "evaluation/tables/per_class.csv")
    if table is None:
        return []
    intervals = read_json(reports / "evaluation/tables/intervals.json").get("per_class", {}).get("AP", {})
    table = table.sort_values("AP", ascending=False, kind="stable", na_position="last")
    return [
        {
            "name": str(row["class"]),
            "objects": int(row["objects"]),
            "values": [row[key] for key in CLASS_COLUMNS],
            "interval": interval(intervals.get(str(row["class"]))),
        }
        for row in table.to_dict("records")
    ]


def error_gains(reports: Path) -> list[tuple[str, float]]:
    """Error types and the AP50 that each loses, largest first."""
    table = read_table(reports / "evaluation/tables/errors.csv")
    if table is None:
        return []
    table = table[~table["error_type"].isin(TOTALS)].dropna()
    table = table.sort_values("dAP50", ascending=False, kind="stable")
    return [(str(row["error_type"]), float(row["dAP50"])) for row in table.to_dict("records")]


def confused_classes(reports: Path, count: int = 8) -> list[tuple[str, str, int]]:
    """Most frequent confusions: actual class, predicted class, count."""
    table = read_table(reports / "evaluation/tables/confusion.csv")
    if table is None:
        return []
    table = table[(table["actual"] != table["predicted"]) & (table["actual"] != BACKGROUND_ROW)]
    table = table[table["predicted"] != MISSED_COLUMN]
    table = table.sort_values("count", ascending=False, kind="stable").head(count)
    return [(str(r["actual"]), str(r["predicted"]), int(r["count"])) for r in table.to_dict("records")]


def recall_bins(reports: Path, min_objects: int) -> tuple[float, list[Row]]:
    """Recall above the threshold of all objects, and of bins of objects, lowest first.

    Args:
        reports: Folder of all reports.
        min_objects: Smaller bins are left out.

    Returns:
        Recall, and rows with `attribute`, `text`, `recall` and `objects`.
    """
    table = read_table(reports / "evaluation/tables/recall.csv")
    if table is None:
        return 0.0, []
    first = table[table["attribute"] == table["attribute"].iloc[0]]
    total = float(first["detected_above_threshold"].sum() / first["objects"].sum())
    table = table[table["objects"] >= min_objects].sort_values("recall_above_threshold", kind="stable")
    table["text"] = [*map(describe_bin, table["attribute"], table["low"], table["high"])]
    table["recall"] = table["recall_above_threshold"]
    rows = table[["attribute", "text", "recall", "objects"]].to_dict("records")
    return total, [{str(key): value for key, value in row.items()} for row in rows]


def describe_bin(attribute: str, low: float, high: float) -> str:
    """Objects of a bin, as a phrase."""
    name = bin_name(attribute, low, high)
    if attribute == "truncation":
        return "objects inside the image" if low == 0 else f"objects truncated at {name} image sides"
    if attribute == "crowding":
        return "objects without overlap" if name == "none" else f"objects with IoU {name} to another object"
    return f"objects of size {name} px" if attribute == "size" else f"objects of aspect ratio {name}"


def speed(reports: Path) -> list[tuple[str, str, str]]:
    """Name, value and explanation of size and speed; [] if not measured."""
    measured = read_json(reports / "evaluation/tables/speed.json")
    if not measured:
        return []
    rows = [("parameters", f"{measured['parameters']:,}", f"{measured['weights_mib']:.1f} MiB of weights")]
    if "latency_ms" in measured:
        height, width = measured["image_size"]
        latency, throughput = measured["latency_ms"], measured["throughput"]
        rows += [
            ("compute", f"{measured['gflops']:.1f} GFLOPs", f"per image of {width} × {height} pixels"),
            (
                "latency",
                f"{latency['median']:.1f} ms, p95 {latency['p95']:.1f} ms",
                f"batch size 1: median and 95th percentile of {latency['rounds']} rounds",
            ),
            (
                "throughput",
                f"{throughput['images_per_s']:.1f} images/s, slowest {throughput['slowest']:.1f}",
                f"batch size {throughput['batch_size']}: median and slowest of {throughput['rounds']} rounds",
            ),
            ("peak memory", f"{measured['peak_mib']:,.0f} MiB", "of the GPU; on a CPU, of the whole process"),
        ]
    threads = measured.get("threads", 0)
    device = measured["device"] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")
    return [*rows, ("device", device, f"{measured['precision']}, torch {measured['torch']}")]


def recipe(reports: Path) -> list[Row]:
    """`key`, `value` and `source` (section of params.yaml, or empty) of each value of the merged recipe."""
    made_of = read_json(reports / "train/recipe.json")
    sources = {one["key"]: one["source"] for one in made_of.get("overrides", [])}
    return [
        {"key": key, "value": _yaml(value), "source": sources.get(key, "")}
        for key, value in flatten(made_of.get("recipe", {})).items()
    ]


def _yaml(value: Any) -> str:
    """A value as in `params.yaml`; floats have six significant digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return str(value)


def dataset(card: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Statistics of a dataset card: name, and the value of each split."""
    splits = [split for split in card.get("splits", {}).values() if split]
    rows = [
        (name, [_statistic(split.get(key), unit) for split in splits])
        for key, (name, unit) in DATASET_STATISTICS.items()
    ]
    return [(name, values) for name, values in rows if any(value != MISSING for value in values)]


def _statistic(value: float | Mapping[str, float] | None, unit: str) -> str:
    """A count, a fraction in percent, or a median with the 5 % and 95 % quantiles."""
    if not isinstance(value, Mapping):
        return number(value, ".1%" if unit else ",", MISSING)
    scale = 100 if unit == "%" else 1
    median, low, high = (f"{value[name] * scale:.3g}" for name in ("median", "q05", "q95"))
    return f"{median}{unit}" if low == high == median else f"{median}{unit} ({low} to {high})"
