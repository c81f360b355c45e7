"""The check for missing data, which names the path and the fix, and names that point outside a folder."""

from pathlib import Path

import pytest

from detection.data.sources.layout import VocFolder, check_present, is_inside
from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES
from detection.input_files import image_files
from detection.params import CocoDataset, VocDataset, load
from detection.params.datasets import CocoSplit, Dataset
from detection.training.pretrain import imagefolder

PARAMS = Path(__file__).resolve().parents[3] / "params.yaml"
FOLDER = VocDataset(format="voc", path="mine", train=("./",), holdout_fraction=0.1)


def message_for(name: str, dataset: Dataset | None = None) -> str:
    with pytest.raises(DataError) as raised:
        check_present(name, dataset or load(PARAMS, dataset=name).data)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("voc2007", "`detection download voc2007`,"),
        ("voc2012", "`detection download voc2012`,"),
        ("voc2007_trainval_split", "`detection download voc2007`,"),
        ("voc2012_trainval", "`detection download voc2007` and `detection download voc2012`,"),
        ("voc0712", "`detection download voc2007` and `detection download voc2012`,"),
        ("coco2017", "`detection download coco2017`,"),
    ],
)
def test_missing_official_data_names_the_download_command(data_root: Path, name: str, command: str) -> None:
    message = message_for(name)
    assert command in message
    assert "DATA_ROOT" in message


def test_only_the_missing_year_is_downloaded(data_root: Path) -> None:
    lists = data_root / "VOCdevkit/VOC2007/ImageSets/Main"
    lists.mkdir(parents=True)
    for name in ("trainval", "test"):
        (lists / f"{name}.txt").touch()
    message = message_for("voc0712")
    assert f"train: VOC2012 is not in {data_root}/VOCdevkit;" in message
    assert "`detection download voc2012`" in message
    assert "voc2007" not in message
    check_present("voc2007", load(PARAMS, dataset="voc2007").data)
    typo = VocDataset(format="voc", path="VOCdevkit", train=("VOC2007/trainvall",), holdout_fraction=0.1)
    assert "did you mean 'trainval'?" in message_for("mine", typo)


def test_missing_own_data_names_the_expected_files(data_root: Path) -> None:
    message = message_for("bccd")
    for part in (f"{data_root}/bccd/BCCD", "JPEGImages", "Annotations", "ImageSets", "DATA_ROOT"):
        assert part in message
    parts = [(CocoSplit(images=name, annotations=f"{name}.json"),) for name in ("seen", "unseen")]
    coco = CocoDataset(format="coco", path="mine", train=parts[0], test=parts[1])
    assert "put seen.json, unseen.json and the images of seen, unseen into mine" in message_for("mine", coco)


def test_a_folder_without_lists_names_the_folder_without_annotations(data_root: Path) -> None:
    message = message_for("mine", FOLDER)
    for part in (f"{data_root}/mine", "mine/JPEGImages", "mine/Annotations", "DATA_ROOT"):
        assert part in message
    (data_root / "mine").mkdir()
    (data_root / "mine/one.jpg").touch()
    assert f"train: no XML file in {data_root}/mine;" in message_for("mine", FOLDER)
    (data_root / "mine/Annotations").mkdir()
    assert f"train: no XML file in {data_root}/mine/Annotations;" in message_for("mine", FOLDER)
    (data_root / "mine/Annotations/one.xml").touch()
    check_present("mine", FOLDER)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("sub/a..b.jpg", True),
        (".hidden", True),
        ("../a.jpg", False),
        ("sub/../../a.jpg", False),
        ("/etc/passwd", False),
        ("..\\a.jpg", False),
        ("C:\\a.jpg", False),
        ("a\0b", False),
    ],
)
def test_names_outside_the_folder(name: str, inside: bool) -> None:
    assert is_inside(name) is inside


def test_every_image_suffix_is_found_for_training_and_prediction(tmp_path: Path) -> None:
    names = sorted(f"image{suffix}" for suffix in IMAGE_SUFFIXES)
    for folder in ("voc", "classes/cat", "predict"):
        (tmp_path / folder).mkdir(parents=True)
        for name in [*names, "notes.txt"]:
            (tmp_path / folder / name).touch()
    assert ".jfif" in IMAGE_SUFFIXES
    assert [name for _, name in VocFolder(tmp_path, "voc").find_images()] == names
    files = imagefolder.list_folder(tmp_path / "classes").files.tolist()
    assert [name.decode() for name in files] == [f"cat/{name}" for name in names]
    assert [file.name for file in image_files(tmp_path / "predict")] == names
