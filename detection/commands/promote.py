"""`detection promote`: register an experiment's detector in MLflow's model registry."""

import argparse

from detection.experiments.find import find
from detection.experiments.repository import Repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `detection promote`."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="as for compare")
    parser.add_argument("--alias", default="champion", help="alias of the version; default: %(default)s")
    parser.add_argument("--name", help="registered model; default: detector-DATASET")


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags.

    Raises:
        DataError: The experiment does not exist or was not evaluated.
        TrackingError: The experiment has no MLflow run, or MLflow refuses.
    """
    experiment = find(args.experiment, Repository())
    from detection.experiments.registry import promote

    return promote(experiment, args.name, args.alias)
