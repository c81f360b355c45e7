"""Bring the figures and the page to the row that `evaluate` named."""

import logging
from pathlib import Path

from detection.errors import TrackingError, reason
from detection.params import Params
from detection.tracking.client import find_run, read_run_id
from detection.tracking.store import connect, import_mlflow, switched_off, tracking_uri
from detection.tracking.sync import log_figures_to, sync_run

log = logging.getLogger(__name__)


def log_figures(params: Params, run_json: Path = Path("reports/evaluation/run.json")) -> None:
    """Store the figures and the page in the row that `run_json` names.

    Where the store does not know that row, as it was away when the detector was evaluated, or has not all of
    it, everything is sent now. Where there is to be no row, mlflow is not imported.
    """
    run_id = read_run_id(run_json)
    if run_id is None or switched_off():
        return
    try:
        import_mlflow()
        store = connect()
        row = find_run(store, run_id)
        if row is None or row.info.status != "FINISHED":
            sync_run(store, params)
        else:
            log_figures_to(store, row.info.run_id)
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way, and the figures stand in the reports
        log.warning("the figures are not in MLflow: %s: %s", tracking_uri(), reason(error))
