"""Whether a dataset's files are where `params.yaml` says: a look at names, before anything is read.

Imports no numpy: `check` tells a slip in half a second, before a stage removes its outputs.
"""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from detection.data.download.archives import downloads
from detection.data.sources.voc_layout import VocFolder, split_spec
from detection.errors import DataError
from detection.files import data_root
from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset
from detection.text import did_you_mean


def check_present(name: str, dataset: Dataset) -> None:
    """Look for the folder, the split lists or annotation files, and the picture folders of a dataset.

    Args:
        name: The dataset's name in `params.yaml`, for the message.
        dataset: Its entry. `shapes` is never missing: it is drawn where it is not on disk.

    Raises:
        DataError: Something is not there; says where it was looked for and what belongs there.
    """
    if isinstance(dataset, ShapesDataset):
        return
    _check_holdout(name, dataset)
    root = data_root() / dataset.path
    needed = {split: _needed(dataset, root, split) for split in ("train", "val", "test")}
    if not root.is_dir():
        raise DataError(
            f"dataset {name} was looked for at {root.resolve()} and is not there; "
            f"{_download(path for paths in needed.values() for path in paths) or _what_belongs(dataset)}, "
            f"or set DATA_ROOT to the folder that holds {dataset.path}"
        )
    for split, paths in needed.items():
        if missing := [path for path in paths if not path.exists()]:
            raise DataError(
                f"dataset {name}, {split}: {missing[0].relative_to(root)} is not in {root.resolve()}; "
                f"{_download(missing) or _nearest(missing[0]) or f'datasets.{name} asks for it'}"
            )
        for folder in _unlisted(dataset, root, split):
            if not folder.find_annotations():
                raise DataError(
                    f"dataset {name}, {split}: no XML file is in {(root / folder.annotations).resolve()}; "
                    f"{_what_belongs(dataset)}"
                )


def _check_holdout(name: str, dataset: VocDataset | CocoDataset) -> None:
    if not 0 <= dataset.holdout_fraction < 1:
        raise DataError(
            f"datasets.{name}.holdout_fraction must be at least 0 and below 1, not {dataset.holdout_fraction}"
        )
    if not dataset.test and not dataset.holdout_fraction:
        raise DataError(
            f"datasets.{name} names no test: name one, or write `holdout_fraction: 0.1` to cut it from train"
        )
    cut = sum(not split for split in (dataset.val, dataset.test))
    if cut * dataset.holdout_fraction >= 1:
        raise DataError(
            f"datasets.{name}.holdout_fraction cuts val and test: it must be below 0.5, "
            f"not {dataset.holdout_fraction}"
        )


def _download(missing: Iterable[Path]) -> str:
    """The commands that fetch what is missing; empty where there is none."""
    relative = (Path(os.path.relpath(path, data_root())).as_posix() for path in missing)
    commands = [f"`detection download {name}`" for name in downloads(relative)]
    return f"{' and '.join(commands)} {'fetches' if len(commands) == 1 else 'fetch'} it" if commands else ""


def _nearest(path: Path) -> str:
    """The name beside a missing one that is most like it; empty where there are none or too many."""
    there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    return did_you_mean(path.name, there) if 0 < len(there) <= 50 else ""


def _what_belongs(dataset: VocDataset | CocoDataset) -> str:
    """What a person has to put where; folders are named relative to `DATA_ROOT`."""
    if isinstance(dataset, CocoDataset):
        parts = [part for split in (dataset.train, dataset.val, dataset.test) for part in split]
        files = dict.fromkeys(part.annotations for part in parts)
        folders = dict.fromkeys(part.images for part in parts)
        return f"put {', '.join(files)} and the pictures of {', '.join(folders)} into {dataset.path}"
    spec = dataset.train[0]
    parent = posixpath.normpath(f"{dataset.path}/{posixpath.dirname(spec)}")
    if spec.endswith("/"):
        return (
            f"put pictures into {parent}, each with an XML file of the same name beside it "
            f"(or into {parent}/JPEGImages and {parent}/Annotations)"
        )
    return f"put VOC's folders JPEGImages, Annotations and ImageSets into {parent}"


def _needed(dataset: VocDataset | CocoDataset, root: Path, split: str) -> list[Path]:
    if isinstance(dataset, CocoDataset):
        parts = getattr(dataset, split)
        return [root / path for part in parts for path in (part.annotations, part.images)]
    paths = []
    for spec in getattr(dataset, split):
        folder, name = split_spec(root, spec)
        paths += [folder.path] if name is None else [folder.path, folder.list_file(name)]
    return paths


def _unlisted(dataset: VocDataset | CocoDataset, root: Path, split: str) -> list[VocFolder]:
    """The folders that a split takes whole."""
    if isinstance(dataset, CocoDataset):
        return []
    specs = (split_spec(root, spec) for spec in getattr(dataset, split))
    return [folder for folder, name in specs if name is None]
