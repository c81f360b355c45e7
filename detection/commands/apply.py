"""`detection apply`: from a row of MLflow to its experiment."""

from detection.experiments.repository import Repository
from detection.experiments.restore import restore


def apply(run: str) -> str:
    """Bring the experiment of a row back into the workspace, or say which commands would.

    Args:
        run: Id or name of a row, or the name of an experiment.

    Raises:
        DataError: There is no such row, or uncommitted work would be lost.
        TrackingError: The store of the rows cannot be asked.
    """
    return restore(run, Repository())
