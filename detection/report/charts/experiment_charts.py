"""Charts of one experiment: the data of each Vega-Lite template, from the files under `reports/`."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detection.evaluation.analysis.tables import BACKGROUND_ROW, MISSED_COLUMN
from detection.files import read_json, read_table
from detection.report.charts.vega import ChartData, for_page, to_png, to_svg

if TYPE_CHECKING:
    import pandas as pd


MAX_POINTS = 400
"""Points of a curve; longer ones are thinned evenly. The raw loss has four times as many."""
MAX_CLASSES_IN_ONE_COLUMN = 25
MAX_CLASSES = 200
"""Classes in a chart; the best and the worst, or the most confused ones, of more."""
MAX_NAMED_CLASSES = 60
"""Classes up to which the confusion matrix has names on its axes, and fractions under 1 %."""
OTHER_CLASSES = "(other classes)"
PR_POINTS = 101
"""Rows of `pr_curves.csv` per class."""
MONITORS = ("AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area")
PROPERTIES = {
    "size": "size: √area in pixels",
    "aspect ratio": "aspect ratio: width to height",
    "crowding": "crowding: IoU with the nearest object",
    "truncation": "image sides touched",
}
OFFSETS = {
    "IoU": "IoU with the object",
    "x": "x offset / width",
    "y": "y offset / height",
    "width": "width error / width",
    "height": "height error / height",
}


def draw_charts(reports: Path, folder: Path | None, smoothing: float = 0.9) -> dict[str, str]:
    """Draw every chart whose data exist.

    Args:
        reports: Folder of all reports.
        folder: Folder of the PNG files, `<name>.png`; None: do not write them.
        smoothing: Weight of the past in the moving average of the losses, 0 to 1.

    Returns:
        SVG elements for the page, by name.
    """
    training = (losses, learning_rate, validation, pretrain)
    evaluation = (pr_curves, ap_per_class, errors, confusion, operating, calibration, recall, localization)
    drawn = {}
    for build in (*training, *evaluation):
        name = build.__name__
        data = losses(reports, smoothing) if build is losses else build(reports)
        if data is not None:
            svg = to_svg(name, data)
            if folder is not None:
                to_png(svg, folder / f"{name}.png")
            drawn[name] = for_page(svg, name)
    return drawn


def losses(reports: Path, smoothing: float = 0.9) -> ChartData | None:
    """`train/losses.csv`: the raw total, and moving averages of the total and of each term; `val_loss` if recorded."""
    import pandas as pd

    table = read_table(reports / "train/losses.csv")
    if table is None:
        return None
    terms = [name for name in table.columns if name not in ("step", "epoch", "time", "lr", "loss")]
    top = float(table["loss"].quantile(0.995)) * 1.1 or 1.0  # without outliers of the first steps
    parts = []
    for name in ["loss", *terms] if len(terms) != 1 else ["loss"]:
        smooth = table[name].ewm(alpha=max(1 - smoothing, 1e-3)).mean()
        label = f"{'total' if name == 'loss' else name.replace('_', ' ')}  {smooth.iloc[-1]:.3f}"
        curve = pd.DataFrame({"step": table["step"], "term": label, "smooth": smooth.clip(upper=top)})
        parts.append(_thinned(curve))
    val = read_table(reports / "train/metrics.csv")
    if val is not None and "val_loss" in val.columns and len(val := val.dropna(subset="val_loss")):
        label = f"total, val  {val['val_loss'].iloc[-1]:.3f}"
        parts.append(pd.DataFrame({"step": val["step"], "term": label, "smooth": val["val_loss"].clip(upper=top)}))
    raw = pd.DataFrame({"step": table["step"], "raw": table["loss"].clip(upper=top)})
    rows = pd.concat([*parts, _thinned(raw, 4 * MAX_POINTS)])
    return ChartData(rows, f"moving average ({smoothing:g}), last value in the legend", _epochs(table))


def learning_rate(reports: Path) -> ChartData | None:
    """`lr` of `train/losses.csv`."""
    table = read_table(reports / "train/losses.csv")
    return None if table is None else ChartData(_thinned(table[["step", "lr"]]), params=_epochs(table))


def _thinned(table: "pd.DataFrame", points: int = MAX_POINTS) -> "pd.DataFrame":
    rows = np.linspace(0, len(table) - 1, min(len(table), points)).astype(int)
    return table.iloc[np.unique(rows)]


def _epochs(table: "pd.DataFrame") -> dict[str, float]:
    return {"steps_per_epoch": float(table["step"].iloc[-1] / max(table["epoch"].iloc[-1], 1e-9))}


def validation(reports: Path) -> ChartData | None:
    """`train/metrics.csv`: average precision on val, and the selected checkpoint."""
    table = read_table(reports / "train/metrics.csv")
    if table is None or not set(MONITORS) & set(table.columns):
        return None
    summary = read_json(reports / "train/metrics.json")
    best, monitor = summary.get("best_epoch"), monitored(summary) or "AP"
    title = f"selected: epoch {best}, {monitor} {summary[monitor]:.3f}" if monitor in summary and best else ""
    columns = [name for name in ("epoch", *MONITORS) if name in table.columns]
    return ChartData(table[columns], title, {"best_epoch": best, "monitor": monitor})


def monitored(summary: Mapping[str, object]) -> str | None:
    """Name of the metric that selected the checkpoint, from `train/metrics.json`."""
    return next((name for name in summary if name in MONITORS), None)


def pretrain(reports: Path) -> ChartData | None:
    """`pretrain/curves.csv`: loss and accuracy of the backbone; None if it was not trained here."""
    table = read_table(reports / "pretrain/curves.csv")
    return None if table is None else ChartData(table)


def pr_curves(reports: Path) -> ChartData | None:
    """`evaluation/tables/pr_curves.csv`: the mean and all classes, or the best and worst 5 of more than 20."""
    table = read_table(reports / "evaluation/tables/pr_curves.csv")
    if table is None or table["precision"].isna().all():
        return None
    blocks = table["precision"].to_numpy().reshape(-1, PR_POINTS)
    order = np.argsort(-blocks[1:].mean(axis=1), kind="stable")  # NaN last
    known = int(np.sum(~np.isnan(blocks[1:, 0])))
    if known <= 20:
        return ChartData(table)
    shown = [0, *np.sort(1 + np.concatenate([order[:5], order[known - 5 : known]]))]
    rows = (np.array(shown)[:, None] * PR_POINTS + np.arange(PR_POINTS)).ravel()
    return ChartData(table.iloc[rows], f"mean, best 5 and worst 5 of {known} classes")


def ap_per_class(reports: Path) -> ChartData | None:
    """`evaluation/tables/per_class.csv`: AP and AP50, best class first; best and worst of more than `MAX_CLASSES`."""
    import pandas as pd

    table = read_table(reports / "evaluation/tables/per_class.csv")
    if table is None or table["AP"].isna().all():
        return None
    table = table.dropna(subset=["AP"]).sort_values("AP", ascending=False, kind="stable")
    title = ""
    if len(table) > MAX_CLASSES:
        title = f"best {MAX_CLASSES // 2} and worst {MAX_CLASSES // 2} of {len(table)} classes"
        table = pd.concat([table.head(MAX_CLASSES // 2), table.tail(MAX_CLASSES // 2)])
    columns = 1 if len(table) <= MAX_CLASSES_IN_ONE_COLUMN else 2
    table["column"] = np.arange(len(table)) // -(-len(table) // columns)
    return ChartData(table, title, size={"width": 640 // columns})


def errors(reports: Path) -> ChartData | None:
    """`evaluation/tables/errors.csv`: AP50 lost per error type."""
    table = read_table(reports / "evaluation/tables/errors.csv")
    return None if table is None or table["dAP50"].isna().all() else ChartData(table)


def confusion(reports: Path) -> ChartData | None:
    """`evaluation/tables/confusion.csv` in label order."""
    import pandas as pd

    table = read_table(reports / "evaluation/tables/confusion.csv")
    classes = read_table(reports / "evaluation/tables/per_class.csv")
    if table is None or classes is None:
        return None
    names = classes["class"].astype(str).tolist()
    if len(names) > MAX_CLASSES:
        table, names = _most_confused(table, names)
    rows, columns = [*names, BACKGROUND_ROW], [*names, MISSED_COLUMN]
    if len(names) > MAX_NAMED_CLASSES:
        of_class = table.groupby("actual")["count"].transform("sum")
        table = table.loc[table["count"] >= 0.01 * of_class]
    # A zero on each cell of the diagonal keeps classes without counts on the axes.
    table = pd.concat([table, pd.DataFrame({"actual": rows, "predicted": columns, "count": 0})])
    table = table.groupby(["actual", "predicted"])[["count"]].sum().reset_index()
    table["actual_order"] = table["actual"].map({name: i for i, name in enumerate(rows)})
    table["predicted_order"] = table["predicted"].map({name: i for i, name in enumerate(columns)})
    analysis = read_json(reports / "evaluation/tables/analysis.json")
    score, iou = analysis.get("threshold", {}).get("score"), analysis.get("iou", {}).get("foreground")
    title = f"score ≥ {score:.3f} (best F1), IoU ≥ {iou:g}" if score is not None else "no detections"
    side = max(150, min(640, 42 * len(rows)))
    named = {"names": len(names) <= MAX_NAMED_CLASSES}
    return ChartData(table, title, named, {"width": side, "height": side})


def _most_confused(table: "pd.DataFrame", names: list[str]) -> tuple["pd.DataFrame", list[str]]:
    """Counts of the classes with the most confusions, in label order, and of all others as one class."""
    confused = table[table["actual"] != table["predicted"]]
    count = confused.groupby("actual")["count"].sum().add(confused.groupby("predicted")["count"].sum(), fill_value=0)
    most = count.drop([BACKGROUND_ROW, MISSED_COLUMN], errors="ignore").nlargest(MAX_NAMED_CLASSES - 1).index
    kept = {*most, BACKGROUND_ROW, MISSED_COLUMN}
    merged = {name: table[name].where(table[name].isin(kept), OTHER_CLASSES) for name in ("actual", "predicted")}
    return table.assign(**merged), [*(name for name in names if name in kept), OTHER_CLASSES]


def operating(reports: Path) -> ChartData | None:
    """`evaluation/tables/score_sweep.csv`: micro-averaged precision, recall and F1 over the score threshold."""
    table = read_table(reports / "evaluation/tables/score_sweep.csv")
    if table is None or table["f1"].isna().all():
        return None
    table = table.iloc[: table["score"].nunique()]  # the first block; a class may have the same name
    best = read_json(reports / "evaluation/tables/analysis.json").get("threshold", {})
    if best.get("score") is None:
        return ChartData(table)
    title = f"best F1 {best['f1']:.3f} at score {best['score']:.3f}"
    return ChartData(table, title, {"threshold": best["score"]})


def calibration(reports: Path) -> ChartData | None:
    """`evaluation/tables/calibration.csv`: precision per bin of the score."""
    table = read_table(reports / "evaluation/tables/calibration.csv")
    if table is None or not (table["detections"] > 0).any():
        return None
    error = read_json(reports / "evaluation/tables/analysis.json").get("calibration_error")
    return ChartData(table, "" if error is None else f"calibration error {error:.3f}")


def recall(reports: Path) -> ChartData | None:
    """`evaluation/tables/recall.csv`: one panel per property of the objects."""
    table = read_table(reports / "evaluation/tables/recall.csv")
    if table is None:
        return None
    table["bin"] = [*map(bin_name, table["attribute"], table["low"], table["high"])]
    table["property"] = table["attribute"].map(PROPERTIES)
    return ChartData(table.drop(columns=["low", "high"]), "light: any score; dark: above the threshold of best F1")


def bin_name(attribute: str, low: float, high: float) -> str:
    """Axis label of a bin; an upper limit of NaN is open."""
    if attribute == "truncation":
        return f"{low:.0f} or more" if np.isnan(high) else f"{low:.0f}"
    if attribute == "crowding" and high < 1e-3:
        return "none"
    form = _ratio if attribute == "aspect ratio" else "{:g}".format
    if np.isnan(high):
        return f"≥ {form(low)}"
    return f"< {form(high)}" if low < 1e-3 else f"{form(low)}–{form(high)}"


def _ratio(value: float) -> str:
    return "{0.numerator}:{0.denominator}".format(Fraction(value).limit_denominator(9))


def localization(reports: Path) -> ChartData | None:
    """`evaluation/tables/localization.csv`: IoU and offsets of the true positives."""
    table = read_table(reports / "evaluation/tables/localization.csv")
    if table is None or table["detections"].sum() == 0:
        return None
    table["title"] = table["measure"].map(OFFSETS) + table["median"].map(" (median {:.3f})".format)
    return ChartData(table[["title", "low", "high", "detections", "median"]])
