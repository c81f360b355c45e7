"""`detection deps`: write the code dependencies in dvc.yaml anew, after an import came or went."""

from pathlib import Path

from detection.closure import rewrite


def deps() -> str:
    """Rewrite dvc.yaml; returns what changed."""
    changed = rewrite(Path("dvc.yaml"))
    return "dvc.yaml: new deps of " + ", ".join(changed) if changed else "dvc.yaml is up to date"
