"""`detection pin`: write a dataset's digest to params.yaml, so that changed data is refused."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from detection import params
from detection.data.sources.dataset import read
from detection.files import PARAMS_YAML


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("name", metavar="DATASET")


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags."""
    return pin(args.name)


def pin(name: str, file: Path = PARAMS_YAML) -> str:
    """Write the digest of a dataset on disk to `datasets.<name>.digest`, keeping comments and key order.

    The dataset is prepared once more, because its entry changes.

    Raises:
        ParamsError: Unknown dataset.
        DataError: The data is missing or invalid.
    """
    loaded = params.load(file, dataset=name)
    digest = read(name, replace(loaded.data, digest=None), loaded.prepare.checks).digest
    if digest == loaded.data.digest:
        return f"{name} is pinned already, and its data is unchanged: {digest}"
    text = file.read_text(encoding="utf-8")
    file.write_text(_with_digest(text, name, digest), encoding="utf-8")
    return f"{file}: datasets.{name}.digest is now {digest}"


def _with_digest(text: str, name: str, digest: str) -> str:
    """Insert the digest and change no other character; a YAML writer would wrap lines."""
    entry = _value(_value(YAML().compose(text), "datasets"), name)
    old = _value(entry, "digest")
    if old is not None and old.value == "":  # an empty value has the position of the next token
        key = next(key for key, _ in entry.value if key.value == "digest")
        colon = text.index(":", key.end_mark.index) + 1
        return f"{text[:colon]} {digest}{text[colon:]}"
    if old is not None:
        return text[: old.start_mark.index] + digest + text[old.end_mark.index :]
    first = entry.value[0][0].start_mark
    separator = ", " if entry.flow_style else "\n" + " " * first.column
    return f"{text[: first.index]}digest: {digest}{separator}{text[first.index :]}"


def _value(mapping: Any, key: str) -> Any:
    return next((value for name, value in mapping.value if name.value == key), None)
