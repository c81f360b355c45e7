"""Check params.yaml and that the dataset exists, before any other stage removes its outputs."""

import subprocess
from pathlib import Path

from detection import params
from detection.data.sources.layout import check_present
from detection.errors import DetectionError
from stages.entry import run

RESULT = Path("data/check.ok")


def main() -> None:
    """Run the stage. Its output is constant, so that it never causes another stage to run."""
    try:
        loaded = params.load()
        check_present(loaded.dataset, loaded.data)
    except DetectionError as error:
        raise type(error)(f"{error}{_undo_hint()}") from None
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("ok\n", encoding="utf-8")


def _undo_hint() -> str:
    """Hint for an invalid value set with `-S`, which stays in params.yaml and breaks the next command too."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    try:
        changed = subprocess.run(command, check=False, capture_output=True).returncode == 1
    except OSError:  # git is not installed
        changed = False
    return "; `git checkout params.yaml` undoes the changes of -S" if changed else ""


if __name__ == "__main__":
    run(main)
