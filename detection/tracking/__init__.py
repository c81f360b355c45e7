"""One experiment, one MLflow row: opened by `train`, completed by `evaluate`, illustrated by `plots`.

    from detection.tracking.opening import open_row                  # train
    from detection.tracking.evaluation import log_evaluation         # evaluate
    from detection.tracking.figures import log_figures               # plots
    from detection.tracking.sync import sync_workspace               # detection sync

    with open_row(params) as row:                      # also where the store is away: it gets the row later
        row.log(step, {"loss": 0.7}, time_ms=now)      # buffered, never blocks, never raises

Import from the modules: an edit of what `evaluate` logs must not train again (`dvc.yaml` lists modules).
Importing them does not import mlflow (4 s); opening a row does.
"""
