"""Rows of MLflow by their id or name."""

from pathlib import Path
from typing import Any

from detection.errors import TrackingError, reason
from detection.tracking.client import REPLACES, find_run
from detection.tracking.store import SQLITE, Store, connect, tracking_uri


def open_store() -> Store | None:
    """The store of this project's rows; None where nothing was ever tracked.

    Raises:
        TrackingError: It cannot be used as configured, or does not answer.
    """
    uri = tracking_uri()
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None
    try:
        return connect()
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way
        raise TrackingError(f"MLflow at {uri} does not answer: {reason(error)}") from None


def run_of(store: Store, name: str) -> Any:
    """The row of that id or name (`mlflow.entities.Run`); None where there is none.

    Raises:
        TrackingError: Several rows have the name.
    """
    row = find_run(store, name)
    if row is not None or "'" in name:
        return row
    same = list(store.client.search_runs([store.experiment], f"attributes.run_name = '{name}'"))
    if len(same) > 1:
        ids = ", ".join(one.info.run_id for one in same)
        raise TrackingError(f"{len(same)} rows are called {name}; name one by its id: {ids}")
    return same[0] if same else None


def ids(row: Any) -> set[str]:
    """What files may call a row: its id, and that of the lost row that it was made in place of."""
    return {str(row.info.run_id), str(row.data.tags.get(REPLACES, row.info.run_id))}
