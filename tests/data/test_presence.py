"""What is said where a dataset is not: where it was looked for, and how it gets there."""

from pathlib import Path

import pytest

from detection.data.sources.preflight import check_present
from detection.errors import DataError
from detection.params import CocoDataset, VocDataset, load
from detection.params.datasets import CocoSplit, Dataset

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
FOLDER = VocDataset(format="voc", path="mine", train=("./",), holdout_fraction=0.1)


def told(name: str, dataset: Dataset | None = None) -> str:
    with pytest.raises(DataError) as raised:
        check_present(name, dataset or load(PARAMS, dataset=name).data)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("voc2007", "`detection download voc2007` fetches it, or set DATA_ROOT to"),
        ("voc2012", "`detection download voc2012` fetches it, or set DATA_ROOT to"),
        ("voc0712", "`detection download voc2007` and `detection download voc2012` fetch it, or set"),
        ("coco2017", "`detection download coco2017` fetches it, or set DATA_ROOT to"),
    ],
)
def test_what_can_be_downloaded_names_the_command(data_root: Path, name: str, command: str) -> None:
    assert command in told(name)


def test_only_the_year_that_is_missing_is_downloaded(data_root: Path) -> None:
    lists = data_root / "VOCdevkit/VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    for name in ("trainval", "test"):
        (lists / f"{name}.txt").touch()
    message = told("voc0712")
    assert f"train: VOC2012 is not in {data_root}/VOCdevkit; `detection download voc2012` fetches" in message
    check_present("voc2007", load(PARAMS, dataset="voc2007").data)
    slip = VocDataset(format="voc", path="VOCdevkit", train=("VOC2007/trainvall",), holdout_fraction=0.1)
    assert "did you mean 'trainval.txt'?" in told("mine", slip)


def test_other_data_says_where_it_belongs(data_root: Path) -> None:
    message = told("bccd")
    assert f"looked for at {data_root}/bccd/BCCD and is not there; put VOC's folders JPEGImages" in message
    assert "ImageSets into bccd/BCCD, or set DATA_ROOT to the folder that holds bccd/BCCD" in message
    parts = [(CocoSplit(images=name, annotations=f"{name}.json"),) for name in ("seen", "unseen")]
    coco = CocoDataset(format="coco", path="mine", train=parts[0], test=parts[1])
    assert "put seen.json, unseen.json and the pictures of seen, unseen into mine, or" in told("mine", coco)


def test_a_folder_without_lists_names_the_folder_that_was_looked_in(data_root: Path) -> None:
    message = told("mine", FOLDER)
    assert f"dataset mine was looked for at {data_root}/mine and is not there; put pictures into" in message
    assert "beside it (or into mine/JPEGImages and mine/Annotations), or set DATA_ROOT" in message
    (data_root / "mine").mkdir()
    (data_root / "mine/one.jpg").touch()
    assert f"train: no XML file is in {data_root}/mine; put pictures into mine, each with" in told(
        "mine", FOLDER
    )
    (data_root / "mine/Annotations").mkdir()
    assert f"train: no XML file is in {data_root}/mine/Annotations; put" in told("mine", FOLDER)
    (data_root / "mine/Annotations/one.xml").touch()
    check_present("mine", FOLDER)
