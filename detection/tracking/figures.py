"""Bring the figures and the page to the row that `evaluate` named."""

import logging
from pathlib import Path

from detection.errors import TrackingError
from detection.tracking.live import reason
from detection.tracking.opening import find_row, read_run_id
from detection.tracking.store import connect, import_mlflow, switched_off, tracking_uri

log = logging.getLogger(__name__)


def log_figures(
    run_json: Path = Path("reports/evaluation/run.json"),
    folder: Path = Path("reports/plots"),
    page: Path = Path("reports/index.html"),
    card: Path = Path("reports/model_card.md"),
) -> None:
    """Store figures, page and model card in the row that `run_json` names; without a row, nothing."""
    run_id = read_run_id(run_json)
    if run_id is None or switched_off():
        return
    try:
        import_mlflow()
        store = connect()
        if find_row(store, run_id) is None:
            log.warning("the figures are not in MLflow: %s does not know the row %s", store.uri, run_id)
            return
        store.client.log_artifacts(run_id, str(folder), "plots")
        store.client.log_artifact(run_id, str(page), "plots")
        if card.is_file():
            store.client.log_artifact(run_id, str(card))
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way, and the figures stand in the reports
        log.warning("the figures are not in MLflow: %s: %s", tracking_uri(), reason(error))
