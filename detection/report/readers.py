"""Reading what the stages left under `reports/`; whatever is not there is None, and the page says so."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return values


def read_table(path: Path) -> "pd.DataFrame | None":
    """A CSV; None where there is no such file, or no row in it."""
    import pandas as pd

    try:
        # A class may be called "nan" or "none": only an empty cell is a missing number.
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    return table if len(table) else None
