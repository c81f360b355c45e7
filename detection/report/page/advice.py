"""Findings of the page: the most notable figure of a section and the setting that affects it."""

from pathlib import Path

import pandas as pd

from detection.files import read_json, read_table
from detection.report.charts.experiment_charts import monitored
from detection.report.page import score_tables

UNTRAINED_AP50 = 0.05
"""AP50 below which the error analysis reflects chance."""
MIN_OBJECTS = 20
"""Objects of a class or a bin below which its score is not reported."""
MIN_RECALL_GAP = 0.05
RARE_FRACTION = 0.1
AP_RISE, AP_FALL = 0.002, 0.01
"""Changes of AP on val at the end of a training that are reported."""
SEE_ALSO = {
    "classification": " (see the confusion matrix)",
    "localization": " (`detection doctor` checks the anchors)",
    "both": "",
    "duplicate": " (related: `nms_threshold`)",
    "background": " (see the suspected label errors)",
    "missed": " (see recall by size)",
    "size": " (related: `image_size`, `anchors.sizes`)",
    "aspect ratio": " (related: `anchors.aspect_ratios`)",
    "crowding": " (related: `nms_threshold`)",
    "truncation": " (related: `augmentation`)",
}


def advise(reports: Path) -> dict[str, str]:
    """Findings by section; sections without numbers have none."""
    metrics = read_json(reports / "evaluation/metrics.json")
    ap50 = metrics.get("AP50")
    if "AP50" in metrics and pd.isna(ap50):
        return {"classes": "No object of the test split can be scored: add annotated images to test."}
    if ap50 is not None and ap50 < UNTRAINED_AP50:
        return {"training": f"AP50 is {ap50:.3f}, below {UNTRAINED_AP50}: the detector is undertrained."}
    sections = {"errors": _errors, "classes": _classes, "recall": _recall, "training": _training}
    return {name: text for name, section in sections.items() if (text := section(reports))}


def _errors(reports: Path) -> str:
    gains = score_tables.error_gains(reports)
    if not gains or gains[0][1] <= 0:
        return ""
    return f"Largest loss of AP50: {gains[0][0]}, {gains[0][1]:.3f}{SEE_ALSO[gains[0][0]]}."


def _classes(reports: Path) -> str:
    rows = [row for row in score_tables.classes(reports) if not pd.isna(row["values"][0])]
    if len(rows) < 2:
        return ""
    worst, others = rows[-1], [row["values"][0] for row in rows[:-1]]
    mean = sum(others) / len(others)
    text = f"Weakest class: {worst['name']}, AP {worst['values'][0]:.3f}; mean of the others {mean:.3f}"
    if worst["interval"] is not None and worst["interval"][1] >= mean:
        low, high = worst["interval"]
        return f"{text}, within the 95 % interval of its AP, {low:.3f} to {high:.3f}."
    if worst["objects"] < MIN_OBJECTS:
        return f"{text}. It has only {worst['objects']} test objects."
    counts = read_table(reports / "dataset/classes.csv")
    if counts is None or counts["train"].sum() == 0:
        return f"{text}."
    fraction = counts.loc[counts["class"] == worst["name"], "train"].sum() / counts["train"].sum()
    return f"{text}. It has {fraction:.0%} of the training objects." if fraction < RARE_FRACTION else f"{text}."


def _recall(reports: Path) -> str:
    total, bins = score_tables.recall_bins(reports, MIN_OBJECTS)
    if not bins:
        return ""
    worst = bins[0]
    if worst["recall"] > total - MIN_RECALL_GAP:
        return f"No group of objects has a recall more than {MIN_RECALL_GAP} below that of all, {total:.2f}."
    return (
        f"Lowest recall: {worst['text']}, {worst['recall']:.2f} of {worst['objects']:,}; all {total:.2f}"
        f"{SEE_ALSO[worst['attribute']]}."
    )


def _training(reports: Path) -> str:
    table = read_table(reports / "train/metrics.csv")
    summary = read_json(reports / "train/metrics.json")
    monitor, best = monitored(summary), summary.get("best_epoch")
    if table is None or monitor is None or monitor not in table or best is None or len(table) < 3:
        return ""
    last = table.iloc[-1]
    fall = float(table.loc[table["epoch"] == best, monitor].max() - last[monitor])
    if pd.isna(fall):
        return ""
    if last["epoch"] == best:
        rise = float(last[monitor] - table[monitor].iloc[-2])
        return f"{monitor} on val rose by {rise:.3f} in the last epoch." if rise > AP_RISE else ""
    if fall > AP_FALL:
        return f"{monitor} on val fell by {fall:.3f} after epoch {best}."
    return f"{monitor} on val has converged."
