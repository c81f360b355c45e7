"""`detection promote`: put an experiment's detector into MLflow's model registry."""

from detection.experiments.find import find
from detection.experiments.repository import Repository


def promote(experiment: str, alias: str, name: str | None) -> str:
    """Register a detector and point an alias at it.

    Args:
        experiment: A name that `dvc exp show` shows, an id or name of a row, a git revision, or `workspace`.
        alias: Of the registered model's version.
        name: The registered model; None: `detector-<dataset>`.

    Raises:
        DataError: There is no such experiment, or it was not evaluated.
        TrackingError: It has no row, or MLflow refuses.
    """
    found = find(experiment, Repository())
    from detection.experiments.registry import promote as register

    return register(found, name, alias)
