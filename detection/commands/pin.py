"""`detection pin`: write a dataset's digest into params.yaml, so that other data is refused from then on."""

from dataclasses import replace
from pathlib import Path

from ruamel.yaml import YAML

from detection import params
from detection.data.read import read

WIDE = 10_000  # a line of params.yaml is never broken


def pin(name: str, file: Path = Path("params.yaml")) -> str:
    """Read a dataset as it lies on disk and write its digest at `datasets.<name>.digest`.

    Comments and order of the file stay. Pinned data is prepared again once, as its entry changed.

    Raises:
        ParamsError: There is no such dataset.
        DataError: Its data is absent or broken.
    """
    chosen = params.load(file, dataset=name)
    digest = read(name, replace(chosen.data, digest=None)).digest
    if digest == chosen.data.digest:
        return f"{name} is pinned already, and its data is as it was: {digest}"
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = WIDE
    document = yaml.load(file)
    document["datasets"][name]["digest"] = digest
    yaml.dump(document, file)
    return f"{file}: datasets.{name}.digest is now {digest}"
