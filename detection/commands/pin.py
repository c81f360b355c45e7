"""`detection pin`: write a dataset's digest into params.yaml, so that other data is refused from then on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from detection import params
from detection.data.sources.dataset import read


def pin(name: str, file: Path = Path("params.yaml")) -> str:
    """Read a dataset as it lies on disk and write its digest at `datasets.<name>.digest`.

    Comments and order of the file stay. Pinned data is prepared again once, as its entry changed.

    Raises:
        ParamsError: There is no such dataset.
        DataError: Its data is absent or broken.
    """
    chosen = params.load(file, dataset=name)
    digest = read(name, replace(chosen.data, digest=None), chosen.prepare.checks).digest
    if digest == chosen.data.digest:
        return f"{name} is pinned already, and its data is as it was: {digest}"
    text = file.read_text(encoding="utf-8")
    file.write_text(_with_digest(text, name, digest), encoding="utf-8")
    return f"{file}: datasets.{name}.digest is now {digest}"


def _with_digest(text: str, name: str, digest: str) -> str:
    """Put the digest in its place and change no other character: a YAML writer would break lines anew."""
    entry = _value(_value(YAML().compose(text), "datasets"), name)
    old = _value(entry, "digest")
    if old is not None and old.value == "":  # its marks are those of what comes next
        key = next(name for name, _ in entry.value if name.value == "digest")
        colon = text.index(":", key.end_mark.index) + 1
        return f"{text[:colon]} {digest}{text[colon:]}"
    if old is not None:
        return text[: old.start_mark.index] + digest + text[old.end_mark.index :]
    first = entry.value[0][0].start_mark
    after = ", " if entry.flow_style else "\n" + " " * first.column
    return f"{text[: first.index]}digest: {digest}{after}{text[first.index :]}"


def _value(mapping: Any, key: str) -> Any:
    return next((value for name, value in mapping.value if name.value == key), None)
