"""One experiment, one MLflow row: opened by `train`, completed by `evaluate`, illustrated by `plots`.

    with open_row(params) as row:                      # a NullRow where there is no store
        row.log(step, {"loss": 0.7}, time_ms=now)      # buffered, never blocks, never raises
    log_evaluation(params=params, metrics={"test/AP50": 0.71})
    log_figures()

Importing this package does not import mlflow (4 s); opening a row does.
"""

from detection.tracking.evaluation import log_evaluation, log_figures
from detection.tracking.opening import log_training_artifacts, open_row
from detection.tracking.row import NullRow, Row

__all__ = ["NullRow", "Row", "log_evaluation", "log_figures", "log_training_artifacts", "open_row"]
