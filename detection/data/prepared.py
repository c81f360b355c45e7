"""What the `prepare` stage left, read back.

prepared = Prepared.load()              # data/prepared
prepared.check_unchanged("train")
index = prepared.index("train")
picture = prepared.root / index[0].file
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.data import shapes
from detection.data.index import Index
from detection.data.listing import listing_hash, sizes
from detection.errors import DataError
from detection.params.datasets import ShapesDataset
from detection.paths import data_root

FOLDER = "data/prepared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared dataset."""

    folder: Path
    """Where the indexes lie."""
    classes: tuple[str, ...]
    """Label i is `classes[i]`."""
    meta: dict[str, Any]
    """`dataset`, `format`, `path`, `digest`, `listing` per split; `shapes`: how to draw them again."""

    @classmethod
    def load(cls, folder: str | Path = FOLDER) -> "Prepared":
        """Open what `prepare` left.

        Raises:
            DataError: It is not there.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            classes = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} is not there; run `dvc repro prepare` first") from None
        return cls(folder=folder, classes=classes, meta=meta)

    @property
    def root(self) -> Path:
        """Folder of the pictures: under `DATA_ROOT`, wherever that is on this machine."""
        return data_root() / str(self.meta["path"])

    @property
    def digest(self) -> str:
        """Hash over annotations and pictures."""
        return str(self.meta["digest"])

    def index(self, split: str) -> Index:
        """The packed index of `train`, `val` or `test`; empty where the dataset has no such split."""
        return Index.load(self.folder / f"{split}.npz")

    def check_unchanged(self, split: str) -> None:
        """Compare a split's pictures with what `prepare` saw; draws `shapes` again where they are missing.

        Raises:
            DataError: A picture is missing, or another one stands in its place.
        """
        name = self.meta["dataset"]
        if "shapes" in self.meta:
            shapes.ensure(ShapesDataset(**self.meta["shapes"]))
        if not self.root.is_dir():
            raise DataError(
                f"the pictures of {name} were looked for at {self.root.resolve()} and are not there; "
                f"put them back, or set DATA_ROOT to the folder that holds {self.meta['path']}"
            )
        if listing_hash(sizes(self.root, self.index(split))) != self.meta["listing"][split]:
            restore = f"delete {self.root}: it is drawn again" if "shapes" in self.meta else "restore them"
            raise DataError(
                f"the {split} pictures of {name} in {self.root} are not those that were prepared; "
                f"{restore}, or run `dvc repro -f -s prepare` to take them as they are"
            )
