"""Check all of params.yaml, and that the chosen dataset is there, before any stage removes its outputs."""

from pathlib import Path

from detection import params
from detection.data.presence import check_present
from stages.entry import run

RESULT = Path("data/check.ok")


def main() -> None:
    """Run the stage. What it leaves is always the same, so that no other stage runs again because of it."""
    asked = params.load()
    check_present(asked.dataset, asked.data)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("ok\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
