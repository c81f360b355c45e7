from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from detection.report.charts.charts import draw
from detection.report.charts.style import INK, house_style, to_png, to_svg

from detection.report.charts import (
    ap_per_class,
    confusion,
    error_chart,
    hover,
    learning_rate,
    localization,
    loss_curves,
    operating,
    pr_curves,
    pretrain_curves,
    recall_charts,
    validation_curves,
)


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_chart_is_drawn_and_saved(finished: Path, tmp_path: Path) -> None:
    drawn = draw(finished / "reports", tmp_path, smoothing=0.9)
    names = ["losses", "learning_rate", "validation", "pretrain", "pr_curves", "ap_per_class", "errors"]
    names += ["confusion", "operating", "calibration", "recall", "localisation"]
    assert list(drawn) == names
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(names)


def test_same_data_gives_the_same_files(finished: Path, tmp_path: Path) -> None:
    one = draw(finished / "reports", tmp_path / "one", smoothing=0.9)
    two = draw(finished / "reports", tmp_path / "two", smoothing=0.9)
    assert one == two
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


CHARTS = [loss_curves, learning_rate, validation_curves, pretrain_curves, pr_curves, ap_per_class]
CHARTS += [error_chart, confusion, operating, recall_charts, localization]


@pytest.mark.parametrize("chart", CHARTS)
def test_nothing_is_drawn_without_rows(chart: Any, tmp_path: Path) -> None:
    assert chart.draw(tmp_path) is None
    for name in ("train/losses", "train/metrics", "pretrain/curves", "evaluation/pr_curves"):
        write(tmp_path / f"{name}.csv", step=[], epoch=[], loss=[], precision=[])
    (tmp_path / "evaluation/per_class.csv").write_text("")
    assert chart.draw(tmp_path) is None


def test_losses_end_at_their_moving_average(tmp_path: Path) -> None:
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
    smooth = loss_curves.draw(tmp_path, smoothing=0.5)
    assert texts(smooth.axes[0]) == ["total  1.857", "box  1.000", "score  0.857"]
    raw = loss_curves.draw(tmp_path, smoothing=0.0)
    assert texts(raw.axes[0]) == ["total  2.000", "box  1.000", "score  1.000"]


def test_wild_first_steps_do_not_flatten_the_curve(tmp_path: Path) -> None:
    steps = np.arange(1, 1001)
    write(
        tmp_path / "train/losses.csv",
        step=steps,
        epoch=steps / 100,
        lr=steps * 0.0,
        loss=np.where(steps <= 3, 1e6, 1.0),
    )
    assert loss_curves.draw(tmp_path).axes[0].get_ylim()[1] < 2


def test_one_step_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "train/losses.csv", step=[1], epoch=[0.1], time=[0], lr=[0.0], loss=[0.0], box=[0.0])
    with house_style():
        for chart in (loss_curves, learning_rate):
            assert to_svg(chart.draw(tmp_path), "one")


def test_validation_marks_the_checkpoint_that_was_kept(tmp_path: Path) -> None:
    write(tmp_path / "train/metrics.csv", epoch=[1, 2, 3], AP=[0.1, 0.3, 0.2], voc_ap50_area=[0.2, 0.5, 0.6])
    summary = tmp_path / "train/metrics.json"
    summary.write_text('{"steps": 9, "best_epoch": 3, "voc_ap50_area": 0.6}')
    axes = validation_curves.draw(tmp_path).axes[0]
    assert axes.get_title(loc="left") == "kept: epoch 3, voc_ap50_area 0.600"
    assert texts(axes) == ["AP", "voc_ap50_area"]
    summary.write_text('{"steps": 9, "best_epoch": null}')
    assert validation_curves.draw(tmp_path).axes[0].get_title(loc="left") == ""


def curves(path: Path, heights: dict[str, float]) -> Path:
    recall = np.linspace(0, 1, 101).round(2)
    return write(
        path / "evaluation/pr_curves.csv",
        **{
            "class": np.repeat(list(heights), 101),
            "recall": np.tile(recall, len(heights)),
            "precision": np.repeat(list(heights.values()), 101),
        },
    )


def test_pr_curves_of_few_classes_are_all_named(tmp_path: Path) -> None:
    curves(tmp_path, {"all": 0.5, "low": 0.25, "none": np.nan, "all ": 0.75, "$x_": 0.5})
    assert texts(pr_curves.draw(tmp_path).axes[0]) == [
        "all   0.750",
        "$x_  0.500",
        "low  0.250",
        "mean  0.500",
    ]


def test_pr_curves_of_many_classes_show_the_extremes(tmp_path: Path) -> None:
    curves(tmp_path, {"all": 0.5} | {f"class {i}": i / 100 for i in range(80)})
    axes = pr_curves.draw(tmp_path).axes[0]
    shown = [79, 78, 77, 76, 75, 4, 3, 2, 1, 0]
    assert texts(axes) == [f"class {i}  {i / 100:.3f}" for i in shown] + ["mean  0.500"]
    assert axes.get_legend().get_title().get_text() == "AP50: best and worst 5,\n70 between not drawn"


def test_a_class_called_all_is_not_the_mean(tmp_path: Path) -> None:
    path = curves(tmp_path, {"all": 0.5, "other": 0.25})
    table = pd.read_csv(path)
    path.write_text(pd.concat([table, table[:101].assign(precision=0.75)]).to_csv(index=False))
    assert texts(pr_curves.draw(tmp_path).axes[0]) == ["all  0.750", "other  0.250", "mean  0.500"]


def test_bars_are_sorted_and_classes_without_objects_left_out(tmp_path: Path) -> None:
    write(
        tmp_path / "evaluation/per_class.csv",
        **{
            "class": ["a", "b", "none"],
            "objects": [1200, 3, 0],
            "AP": [0.5, 0.7, None],
            "AP50": [0.6, 0.9, None],
        },
    )
    axes = ap_per_class.draw(tmp_path).axes[0]
    assert axes.get_yticks().tolist() == [1, 0]  # the best on top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b  (3)", "a  (1,200)"]


def test_svg_takes_the_colours_of_the_page(finished: Path) -> None:
    with house_style():
        svg = to_svg(loss_curves.draw(finished / "reports"), "losses")
    assert svg.startswith("<svg role=")
    assert "currentColor" in svg
    assert INK not in svg
    assert 'id="' in svg
    assert svg.count('id="') == svg.count('id="losses-')
    assert svg.count("url(#") == svg.count("url(#losses-")
    assert "width=" not in svg[: svg.index(">")].replace("stroke-width", "")


def test_many_classes_stand_in_two_columns(tmp_path: Path) -> None:
    names = [f"class {i:02}" for i in range(41)]
    scores = np.arange(41) / 50
    write(
        tmp_path / "evaluation/per_class.csv", **{"class": names, "objects": 7, "AP": scores, "AP50": scores}
    )
    figure = ap_per_class.draw(tmp_path)
    shown = [[label.get_text().split("  ")[0] for label in axes.get_yticklabels()] for axes in figure.axes]
    assert shown == [names[:19:-1], names[19::-1]]
    tops = [axes.get_yticks()[0] for axes in figure.axes]
    assert tops[0] == tops[1] == 20


def test_values_under_the_pointer_are_those_of_the_file(tmp_path: Path) -> None:
    steps = np.arange(1, 1001)
    write(
        tmp_path / "train/losses.csv", step=steps, epoch=steps / 100, lr=steps * 1e-5, loss=1 / steps, box=0.5
    )
    figure = learning_rate.draw(tmp_path)
    to_png(figure, tmp_path / "lr.png")
    (chart,) = hover.values(figure)
    (line,) = chart["lines"]
    assert len(line["x"]) == hover.MOST_POINTS
    assert (line["x"][0], line["x"][-1]) == (1, 1000)
    assert line["y"] == pytest.approx(np.array(line["x"]) * 1e-5, rel=1e-3)
    left, top, width, height = chart["box"]
    assert 0 < left < left + width <= 72 * figure.get_size_inches()[0]
    assert 0 < top < top + height <= 72 * figure.get_size_inches()[1]


def confusion_files(folder: Path, classes: list[str]) -> Path:
    write(folder / "evaluation/per_class.csv", **{"class": classes})
    write(
        folder / "evaluation/confusion.csv",
        actual=["cat", "cat", "dog", "(background)"],
        predicted=["cat", "dog", "(missed)", "cat"],
        count=[7, 3, 2, 5],
    )
    (folder / "evaluation/analysis.json").write_text(
        '{"iou": {"foreground": 0.5}, "threshold": {"score": 0.4375}}'
    )
    return folder


def test_confusion_has_its_thresholds_on_it(tmp_path: Path) -> None:
    reports = confusion_files(tmp_path, ["cat", "dog"])
    axes = confusion.draw(reports).axes[0]
    assert axes.get_title(loc="left") == "score ≥ 0.438 (best F1), IoU ≥ 0.5"
    assert confusion.matrix(reports).to_numpy().tolist() == [[7, 3, 0], [0, 0, 2], [5, 0, 0]]
    assert sorted(text.get_text() for text in axes.texts) == ["2", "3", "5", "7"]
    assert confusion.mistakes(reports) == [("cat", "dog", 3)]


def test_confusion_of_many_classes_has_colours_alone(tmp_path: Path) -> None:
    axes = confusion.draw(confusion_files(tmp_path, ["cat", "dog", *map(str, range(78))])).axes[0]
    assert len(axes.texts) == 0


@pytest.mark.parametrize(
    ("over", "low", "high", "said"),
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
def test_bins_have_names(over: str, low: float, high: float, said: str) -> None:
    assert recall_charts.bin_name(over, low, high) == said
