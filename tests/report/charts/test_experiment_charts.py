import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from detection.report.charts import experiment_charts as charts
from detection.report.charts.vega import ChartData, to_svg

NAMES = ["losses", "learning_rate", "validation", "pretrain", "pr_curves", "ap_per_class", "errors"]
NAMES += ["confusion", "operating", "calibration", "recall", "localization"]


def table(data: ChartData) -> pd.DataFrame:
    assert isinstance(data.rows, pd.DataFrame)
    return data.rows


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def built(name: str, reports: Path, **options: Any) -> ChartData:
    data = getattr(charts, name)(reports, **options)
    assert isinstance(data, ChartData)
    return data


def texts(name: str, data: ChartData) -> list[str]:
    """Visible texts of the rendered chart."""
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]+)", to_svg(name, data))]


def tooltips(name: str, data: ChartData) -> list[str]:
    svg = to_svg(name, data)
    return [html.unescape(text) for text in re.findall(r'aria-label="([^"]*&#xA;[^"]*)"', svg)]


def test_every_chart_is_drawn_twice_alike(finished: Path, tmp_path: Path) -> None:
    one = charts.draw_charts(finished / "reports", tmp_path / "one", smoothing=0.9)
    two = charts.draw_charts(finished / "reports", tmp_path / "two", smoothing=0.9)
    assert list(one) == NAMES
    assert one == two
    assert sorted(path.stem for path in (tmp_path / "one").glob("*.png")) == sorted(NAMES)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_no_chart_without_rows(name: str, tmp_path: Path) -> None:
    assert getattr(charts, name)(tmp_path) is None
    for file in ("train/losses", "train/metrics", "pretrain/curves", "evaluation/tables/pr_curves"):
        write(tmp_path / f"{file}.csv", step=[], epoch=[], loss=[], precision=[])
    (tmp_path / "evaluation/tables/per_class.csv").write_text("")
    assert getattr(charts, name)(tmp_path) is None


def test_recorded_val_loss_is_a_line_of_the_losses(tmp_path: Path) -> None:
    steps = np.arange(1, 41)
    write(tmp_path / "train/losses.csv", step=steps, epoch=steps / 10, lr=steps * 0.0, loss=2 / steps**0.3, box=1.0)
    write(tmp_path / "train/metrics.csv", step=[10, 20, 30, 40], epoch=[1, 2, 3, 4], val_loss=[1.5, None, 1.1, 1.25])
    data = built("losses", tmp_path)
    lines = table(data).dropna(subset="term").groupby("term", sort=False)["step"].apply(list)
    assert lines["total, val  1.250"] == [10, 30, 40]
    assert "total, val  1.250" in texts("losses", data)
    assert "total, val: 1.5" in {line for text in tooltips("losses", data) for line in text.split("\n")}


def test_legend_of_losses_has_the_last_moving_average(tmp_path: Path) -> None:
    write(
        tmp_path / "train/losses.csv",
        step=[1, 2, 3],
        epoch=[0.5, 1.0, 1.5],
        time=[0, 1, 2],
        lr=[0.1] * 3,
        loss=[3.0, 1.0, 2.0],
        box=[2.0, 0.5, 1.0],
        score=[1.0, 0.5, 1.0],
    )
    smooth = built("losses", tmp_path, smoothing=0.5)
    legend = ["total  1.857", "box  1.000", "score  0.857"]
    assert table(smooth)["term"].dropna().unique().tolist() == legend
    assert set(legend) <= set(texts("losses", smooth))
    assert tooltips("losses", smooth)[1].split("\n")[:2] == ["step 2 (epoch 1.00)", "total: 1.667"]
    raw = table(built("losses", tmp_path, smoothing=0.0))["term"].dropna().unique()
    assert raw.tolist() == ["total  2.000", "box  1.000", "score  1.000"]


def test_outliers_of_the_first_steps_do_not_set_the_scale(tmp_path: Path) -> None:
    steps = np.arange(1, 1001)
    loss = np.where(steps <= 3, 1e6, 1.0)
    write(tmp_path / "train/losses.csv", step=steps, epoch=steps / 100, lr=steps * 0.0, loss=loss)
    assert table(built("losses", tmp_path))[["raw", "smooth"]].max().max() < 2


def test_long_curves_are_thinned_and_keep_their_values(tmp_path: Path) -> None:
    steps = np.arange(1, 10_001)
    write(tmp_path / "train/losses.csv", step=steps, epoch=steps / 100, lr=steps * 1e-5, loss=1 / steps)
    data = built("learning_rate", tmp_path)
    assert len(table(data)) == charts.MAX_POINTS
    assert table(data)["step"].iloc[[0, -1]].tolist() == [1, 10_000]
    assert table(data)["lr"].to_numpy() == pytest.approx(table(data)["step"].to_numpy() * 1e-5)
    labels = tooltips("learning_rate", data)
    assert len(labels) == charts.MAX_POINTS
    assert labels[-1] == "step 10000\n0.1"


def test_one_step_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "train/losses.csv", step=[1], epoch=[0.1], time=[0], lr=[0.0], loss=[0.0], box=[0.0])
    for name in ("losses", "learning_rate"):
        assert "NaN" not in to_svg(name, built(name, tmp_path))


def test_validation_marks_the_selected_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "train/metrics.csv", epoch=[1, 2, 3], AP=[0.1, 0.3, 0.2], voc_ap50_area=[0.2, 0.5, 0.6])
    summary = tmp_path / "train/metrics.json"
    summary.write_text('{"steps": 9, "best_epoch": 3, "voc_ap50_area": 0.6}')
    data = built("validation", tmp_path)
    assert "epoch 3, voc_ap50_area 0.600" in data.title
    assert {"AP", "voc_ap50_area"} <= set(texts("validation", data))
    assert tooltips("validation", data)[-1] == "epoch 3\nAP: 0.200\nvoc_ap50_area: 0.600"
    summary.write_text('{"steps": 9, "best_epoch": null}')
    assert built("validation", tmp_path).title == ""


def curves(path: Path, heights: dict[str, float]) -> Path:
    recall = np.linspace(0, 1, 101).round(2)
    return write(
        path / "evaluation/tables/pr_curves.csv",
        **{
            "class": np.repeat(list(heights), 101),
            "recall": np.tile(recall, len(heights)),
            "precision": np.repeat(list(heights.values()), 101),
        },
    )


def legend(reports: Path) -> list[str]:
    return [text for text in texts("pr_curves", built("pr_curves", reports)) if re.search(r"  0\.\d{3}$", text)]


def test_pr_curves_of_few_classes_are_all_named(tmp_path: Path) -> None:
    curves(tmp_path, {"all": 0.5, "low": 0.25, "none": np.nan, "all ": 0.75, "$x_": 0.5})
    assert legend(tmp_path) == ["mean  0.500", "all   0.750", "$x_  0.500", "low  0.250"]


def test_pr_curves_of_many_classes_are_the_best_and_the_worst(tmp_path: Path) -> None:
    curves(tmp_path, {"all": 0.5} | {f"class {i}": i / 100 for i in range(80)})
    expected = [f"class {i}  {i / 100:.3f}" for i in (79, 78, 77, 76, 75, 4, 3, 2, 1, 0)]
    assert legend(tmp_path) == ["mean  0.500", *expected]
    assert "80 classes" in built("pr_curves", tmp_path).title


def test_class_named_all_is_not_the_mean(tmp_path: Path) -> None:
    path = curves(tmp_path, {"all": 0.5, "other": 0.25})
    table = pd.read_csv(path)
    path.write_text(pd.concat([table, table[:101].assign(precision=0.75)]).to_csv(index=False))
    assert legend(tmp_path) == ["mean  0.500", "all  0.750", "other  0.250"]


def test_pr_curve_of_one_class_has_no_mean(tmp_path: Path) -> None:
    curves(tmp_path, {"all": 0.5, "one": 0.5})
    assert legend(tmp_path) == ["one  0.500"]


def test_bars_are_sorted_and_classes_without_objects_left_out(tmp_path: Path) -> None:
    write(
        tmp_path / "evaluation/tables/per_class.csv",
        **{"class": ["a", "b", "none"], "objects": [1200, 3, 0], "AP": [0.5, 0.7, None], "AP50": [0.6, 0.9, None]},
    )
    shown = texts("ap_per_class", built("ap_per_class", tmp_path))
    assert [text for text in shown if re.match(r"[ab]  \(", text)] == ["b  (3)", "a  (1,200)"]
    assert {"0.500", "0.600", "0.700", "0.900"} <= set(shown)


def test_many_classes_take_two_columns(tmp_path: Path) -> None:
    names = [f"class {i:02}" for i in range(41)]
    ap = np.arange(41) / 50
    write(tmp_path / "evaluation/tables/per_class.csv", **{"class": names, "objects": 7, "AP": ap, "AP50": ap})
    rows = table(built("ap_per_class", tmp_path))
    columns = [part["class"].tolist() for _, part in rows.groupby("column")]
    assert columns == [names[:19:-1], names[19::-1]]


def test_bars_of_a_thousand_classes_are_the_best_and_the_worst(tmp_path: Path) -> None:
    names = [f"class {i:04}" for i in range(1203)]
    ap = np.arange(1203) / 2000
    write(tmp_path / "evaluation/tables/per_class.csv", **{"class": names, "objects": 7, "AP": ap, "AP50": ap})
    data = built("ap_per_class", tmp_path)
    assert data.title == "best 100 and worst 100 of 1203 classes"
    columns = [part["class"].tolist() for _, part in table(data).groupby("column")]
    assert columns == [names[:-101:-1], names[99::-1]]


def test_errors_are_sorted_and_totals_left_out(tmp_path: Path) -> None:
    types = ["background", "missed", "false_positives"]
    write(tmp_path / "evaluation/tables/errors.csv", error_type=types, count=[2, 1500, 9], dAP50=[0.1, 0.2, 0.9])
    shown = texts("errors", built("errors", tmp_path))
    assert [text for text in shown if text in types] == ["missed", "background"]
    assert {"+0.200  (1,500)", "+0.100  (2)"} <= set(shown)


def confusion_files(folder: Path, classes: list[str]) -> Path:
    write(folder / "evaluation/tables/per_class.csv", **{"class": classes})
    write(
        folder / "evaluation/tables/confusion.csv",
        actual=["cat", "cat", "dog", "(background)"],
        predicted=["cat", "dog", "(missed)", "cat"],
        count=[7, 3, 2, 5],
    )
    analysis = {"iou": {"foreground": 0.5}, "threshold": {"score": 0.4375}}
    (folder / "evaluation/tables/analysis.json").write_text(json.dumps(analysis))
    return folder


def test_confusion_matrix_shows_its_thresholds_and_counts(tmp_path: Path) -> None:
    data = built("confusion", confusion_files(tmp_path, ["cat", "dog", "owl"]))
    assert data.title == "score ≥ 0.438 (best F1), IoU ≥ 0.5"
    shown = texts("confusion", data)
    assert {"actual", "predicted"} <= set(shown)
    names = [text for text in shown if text in ("cat", "dog", "owl", "(missed)", "(background)")]
    assert names == ["cat", "dog", "owl", "(missed)", "cat", "dog", "owl", "(background)"]
    assert sorted(text for text in shown if text in ["0", "2", "3", "5", "7"]) == ["2", "3", "5", "7"]
    assert "cat predicted as dog\ncount: 3\nfraction of the row: 0.300" in tooltips("confusion", data)


def test_confusion_matrix_of_many_classes_has_colors_alone(tmp_path: Path) -> None:
    data = built("confusion", confusion_files(tmp_path, ["cat", "dog", *map(str, range(100, 178))]))
    assert data.params == {"names": False}
    assert not {"7", "3", "2", "5"} & set(texts("confusion", data))


def test_confusion_matrix_of_a_thousand_classes_names_the_most_confused(tmp_path: Path) -> None:
    data = built("confusion", confusion_files(tmp_path, [*map(str, range(1201)), "cat", "dog"]))
    shown = [text for text in texts("confusion", data) if text not in ("actual", "predicted") and text[0] in "cd("]
    assert shown == [*("cat", "dog", "(other classes)", "(missed)"), *("cat", "dog", "(other classes)", "(background)")]
    assert "cat predicted as dog\ncount: 3\nfraction of the row: 0.300" in tooltips("confusion", data)


@pytest.mark.parametrize(
    ("attribute", "low", "high", "name"),
    [
        ("size", 0, 16, "< 16"),
        ("size", 512, np.nan, "≥ 512"),
        ("aspect ratio", 2 / 3, 1.5, "2:3–3:2"),
        ("crowding", 0, 1e-9, "none"),
        ("crowding", 0.3, 0.5, "0.3–0.5"),
        ("truncation", 1, 2, "1"),
        ("truncation", 2, np.nan, "2 or more"),
    ],
)
def test_bins_have_names(attribute: str, low: float, high: float, name: str) -> None:
    assert charts.bin_name(attribute, low, high) == name
