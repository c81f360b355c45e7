from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from detection.reporting import ap_per_class, learning_rate, losses, pr_curves, pretrain, validation
from detection.reporting.gallery import draw
from detection.reporting.style import INK, house_style, to_svg


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_chart_is_drawn_and_saved(finished: Path, tmp_path: Path) -> None:
    svgs = draw(finished / "reports", tmp_path, smoothing=0.9)
    names = ["losses", "learning_rate", "validation", "pretrain", "pr_curves", "ap_per_class"]
    assert list(svgs) == names
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(names)


def test_same_data_gives_the_same_files(finished: Path, tmp_path: Path) -> None:
    one = draw(finished / "reports", tmp_path / "one", smoothing=0.9)
    two = draw(finished / "reports", tmp_path / "two", smoothing=0.9)
    assert one == two
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("chart", [losses, learning_rate, validation, pretrain, pr_curves, ap_per_class])
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
    smooth = losses.draw(tmp_path, smoothing=0.5)
    assert texts(smooth.axes[0]) == ["total  1.857", "box  1.000", "score  0.857"]
    raw = losses.draw(tmp_path, smoothing=0.0)
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
    assert losses.draw(tmp_path).axes[0].get_ylim()[1] < 2


def test_one_step_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "train/losses.csv", step=[1], epoch=[0.1], time=[0], lr=[0.0], loss=[0.0], box=[0.0])
    with house_style():
        for chart in (losses, learning_rate):
            assert to_svg(chart.draw(tmp_path), "one")


def test_validation_marks_the_checkpoint_that_was_kept(tmp_path: Path) -> None:
    write(tmp_path / "train/metrics.csv", epoch=[1, 2, 3], AP=[0.1, 0.3, 0.2], voc_ap50_area=[0.2, 0.5, 0.6])
    summary = tmp_path / "train/metrics.json"
    summary.write_text('{"steps": 9, "best_epoch": 3, "voc_ap50_area": 0.6}')
    axes = validation.draw(tmp_path).axes[0]
    assert axes.get_title(loc="left") == "kept: epoch 3, voc_ap50_area 0.600"
    assert texts(axes) == ["AP", "voc_ap50_area"]
    summary.write_text('{"steps": 9, "best_epoch": null}')
    assert validation.draw(tmp_path).axes[0].get_title(loc="left") == ""


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
        svg = to_svg(losses.draw(finished / "reports"), "losses")
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
