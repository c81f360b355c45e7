"""docs/migrating.md: every key and command that it names on our side exists."""

import re
from pathlib import Path

from detection.cli import COMMANDS
from detection.params.reader import read_yaml

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = ("models", "presets", "datasets", "budgets")
WORDS = {"evaluate", "overrides", "_v2", "SOURCE", "--threshold", "NAME"}


def our_columns() -> list[str]:
    """Last column of each row of the tables."""
    lines = (ROOT / "docs/migrating.md").read_text().splitlines()
    rows = [line.strip("|").rsplit("|", 1)[1] for line in lines if line.startswith("|") and "---" not in line]
    return [row for row in rows if row.strip() != "here"]


def known_names() -> set[str]:
    """Keys of docs/params.md, with their group where they are not a recipe's, and names in params.yaml."""
    names, group = set(ENTRIES) | {"model", "dataset", "seed"}, ""
    for line in (ROOT / "docs/params.md").read_text().splitlines():
        if line.startswith("## "):
            first = line.split("`")[1]
            group = "" if first.startswith("models") or first == "augmentation" else f"{first}."
        elif match := re.match(r"\| `([^`]+)`", line):
            names.add(group + match[1])
            names.update([match[1]] if group.startswith("datasets") else [])
    params = read_yaml(ROOT / "params.yaml")
    return names | {f"{entry}.NAME" for entry in ENTRIES} | {name for entry in ENTRIES for name in params[entry]}


def test_every_key_exists() -> None:
    known, unknown, seen = known_names(), [], 0
    for text in re.findall(r"`([^`]+)`", "\n".join(our_columns())):
        if text in WORDS:
            continue
        if text.startswith(("detection ", "dvc ")):
            command = text.split()
            assert command[0] == "dvc" or command[1] in COMMANDS, text
            continue
        for part in text.strip("{}").split(", "):
            key, _, value = part.partition(": ")
            seen += 1
            if key not in known and key not in ("params.yaml", "data.yaml", "ssd", "ssdlite", "multiscale"):
                unknown.append(text)
            if key == "model" and value not in read_yaml(ROOT / "params.yaml")["models"]:
                unknown.append(text)
    assert not unknown
    assert seen > 80
