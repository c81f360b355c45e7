"""Check all of params.yaml, and that the chosen dataset is there, before any stage removes its outputs."""

import subprocess
from pathlib import Path

from detection import params
from detection.data.sources.preflight import check_present
from detection.errors import DetectionError
from stages.entry import run

RESULT = Path("data/check.ok")


def main() -> None:
    """Run the stage. What it leaves is always the same, so that no other stage runs again because of it."""
    try:
        asked = params.load()
        check_present(asked.dataset, asked.data)
    except DetectionError as error:
        raise type(error)(f"{error}{_way_back()}") from None
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("ok\n", encoding="utf-8")


def _way_back() -> str:
    """A slip after `-S` stays in params.yaml, where the next command would stumble over it again."""
    asked = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    try:
        differs = subprocess.run(asked, check=False, capture_output=True).returncode == 1
    except OSError:  # no git here
        differs = False
    return "; `git checkout params.yaml` takes back what -S wrote" if differs else ""


if __name__ == "__main__":
    run(main)
