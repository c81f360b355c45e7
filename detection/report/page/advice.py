"""What to do next, read off the numbers: a sentence or two a section, each with its figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from detection.report.charts import confusion
from detection.report.charts.error_chart import SUMS
from detection.report.charts.recall_charts import in_words
from detection.report.charts.validation_curves import monitored
from detection.report.readers import read_json, read_table

ENOUGH = 20
"""Objects from which a bin's or a class's recall is worth a word."""
ON_ERRORS = {
    "classification": "boxes that sit right and are named wrong: see which classes are taken for which in "
    "the confusion matrix, and check their labels; more pictures of them, or more epochs.",
    "localization": "boxes that lie beside their object (IoU 0.1 to 0.5): try a larger `image_size` or more "
    "epochs, and see with `detection doctor` whether anchors fit the objects.",
    "both": "boxes that lie beside an object of another class: usually too little training; more epochs or "
    "pictures.",
    "duplicate": "second boxes on objects that were found already: try a lower `nms_threshold`.",
    "background": "detections where nothing is labelled: look at the suspected label errors first, then add "
    "pictures that hold such things and no objects.",
    "missed": "objects that nothing finds: see which sizes and situations they are; a larger `image_size` or "
    "smaller anchors help small ones.",
}
ON_RECALL = {
    "size": "a larger `image_size` or other `anchors.sizes` help objects of unusual size",
    "aspect ratio": "other `anchors.aspect_ratios` help; `detection doctor` suggests some",
    "crowding": "a higher `nms_threshold` keeps neighbours apart",
    "truncation": "an augmentation that cuts pictures (`ssd`, `crop`) shows more objects cut off",
}


UNTRAINED = 0.05
"""AP50 below which the kinds of errors say nothing but that the detector has hardly learnt."""


def advise(reports: Path) -> dict[str, str]:
    """Advice by section; a section whose numbers are missing or say nothing has none."""
    if text := _untrained(reports):
        return {"training": text}
    sections: dict[str, Callable[[Path], str]] = {
        "errors": _errors,
        "classes": _classes,
        "recall": _recall,
        "confusion": _confusion,
        "localisation": _localisation,
        "operating": _operating,
        "calibration": _calibration,
        "training": _training,
        "scores": _scores,
    }
    said = {name: section(reports) for name, section in sections.items()}
    return {name: text for name, text in said.items() if text}


def _untrained(reports: Path) -> str:
    ap50 = read_json(reports / "evaluation/metrics.json").get("AP50")
    if ap50 is None or ap50 >= UNTRAINED:
        return ""
    return (
        f"AP50 is {ap50:.3f}: the detector has hardly learnt yet, and its errors are chance. Look at whether "
        "the loss falls, then train for more epochs (`budgets`), or begin with `pretrain.method: published`."
    )


def _scores(reports: Path) -> str:
    spread = read_json(reports / "evaluation/intervals.json")
    ap = spread.get("stats", {}).get("AP") or {}
    if ap.get("low") is None:
        return ""
    half = (ap["high"] - ap["low"]) / 2
    return (
        f"With {spread['images']:,} test pictures AP is known to about ±{half:.3f}: compare experiments "
        "with `detection compare`, which draws the same pictures for both."
    )


def _errors(reports: Path) -> str:
    table = read_table(reports / "evaluation/errors.csv")
    if table is None:
        return ""
    table = table[~table["error_type"].isin(SUMS)].dropna().sort_values("dAP50", kind="stable")
    if table.empty or table["dAP50"].iloc[-1] <= 0:
        return ""
    kind, gain = str(table["error_type"].iloc[-1]), float(table["dAP50"].iloc[-1])
    return f"Most is lost ({gain:.3f} of AP50) by {ON_ERRORS[kind]}"


def _classes(reports: Path) -> str:
    table = read_table(reports / "evaluation/per_class.csv")
    if table is None:
        return ""
    table = table.dropna(subset=["AP"]).sort_values("AP", kind="stable")
    if len(table) < 2:
        return ""
    worst, rest = table.iloc[0], table.iloc[1:]
    text = f"The weakest class is {worst['class']}: AP {worst['AP']:.3f}, the others {rest['AP'].mean():.3f}."
    if worst["objects"] < ENOUGH:
        return f"{text} It rests on {worst['objects']} objects: more test pictures come first."
    few = _train_share(reports, str(worst["class"]))
    return text + (
        f" It has only {few:.0%} of the training objects: add pictures of it." if few < 0.1 else ""
    )


def _train_share(reports: Path, name: str) -> float:
    counts = read_table(reports / "dataset/classes.csv")
    if counts is None or counts["train"].sum() == 0:
        return 1.0
    return float(counts.loc[counts["class"] == name, "train"].sum() / counts["train"].sum())


def _recall(reports: Path) -> str:
    table = read_table(reports / "evaluation/recall.csv")
    if table is None:
        return ""
    first = table[table["attribute"] == table["attribute"].iloc[0]]
    whole = first["detected_above_threshold"].sum() / first["objects"].sum()
    enough = table[table["objects"] >= ENOUGH].sort_values("recall_above_threshold", kind="stable")
    if enough.empty or enough["recall_above_threshold"].iloc[0] > whole - 0.05:
        return "" if enough.empty else "No kind of object is found much more rarely than the others."
    worst = enough.iloc[0]
    over = str(worst["attribute"])
    what = in_words(over, worst["low"], worst["high"])
    return (
        f"Weakest: {what} ({worst['objects']:,}), {worst['recall_above_threshold']:.0%} of them found "
        f"above the threshold, {whole:.0%} of all; {ON_RECALL[over]}."
    )


def _confusion(reports: Path) -> str:
    pairs = confusion.mistakes(reports, 1)
    if not pairs:
        return ""
    actual, predicted, count = pairs[0]
    return f"Most often {actual} is taken for {predicted}: {count:,} times."


def _localisation(reports: Path) -> str:
    table = read_table(reports / "evaluation/localization.csv")
    if table is None or table["detections"].sum() == 0:
        return ""
    medians = table.groupby("measure")["median"].first().drop("IoU")
    name = str(medians.abs().idxmax())
    if abs(medians[name]) < 0.02:
        return "The boxes are centred: what IoU they lack is scatter, which more epochs or pixels reduce."
    return (
        f"The boxes have a bias ({name}: {medians[name]:+.1%} of the object): compare how such objects were "
        "labelled in train and test."
    )


def _operating(reports: Path) -> str:
    best = read_json(reports / "evaluation/analysis.json").get("threshold", {})
    if best.get("score") is None:
        return ""
    return (
        f"Where a mistake and a miss weigh the same, keep detections from score {best['score']:.2f} on: then "
        f"{best['precision']:.0%} of them are right, and {best['recall']:.0%} of the objects are found."
    )


def _calibration(reports: Path) -> str:
    table = read_table(reports / "evaluation/calibration.csv")
    error = read_json(reports / "evaluation/analysis.json").get("calibration_error")
    if table is None or error is None:
        return ""
    table = table[table["detections"] > 0]
    gap = ((table["mean_score"] - table["precision"]) * table["detections"]).sum()
    if error < 0.05:
        return "Scores can be read as probabilities of being right."
    way = "too sure of itself" if gap > 0 else "too modest"
    return (
        f"The detector is {way}: its scores are off by {error:.2f} on average, so do not read them as odds."
    )


def _training(reports: Path) -> str:
    table = read_table(reports / "train/metrics.csv")
    summary: dict[str, Any] = read_json(reports / "train/metrics.json")
    monitor, best = monitored(summary), summary.get("best_epoch")
    if table is None or monitor is None or monitor not in table or best is None or len(table) < 3:
        return ""
    last, kept = table.iloc[-1], table.loc[table["epoch"] == best, monitor]
    if kept.empty or pd.isna(last[monitor]):
        return ""
    if last["epoch"] == best:
        rise = float(last[monitor] - table[monitor].iloc[-2])
        return (
            f"{monitor} still rose at the end, by {rise:.3f}: train for more epochs." if rise > 0.002 else ""
        )
    fall = float(kept.iloc[0] - last[monitor])
    if fall > 0.01:
        return f"{monitor} fell by {fall:.3f} after epoch {best}: fewer epochs, or more augmentation."
    return f"{monitor} has levelled off: more epochs alone bring little."
