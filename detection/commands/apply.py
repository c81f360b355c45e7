"""`detection apply`: restore the experiment of an MLflow run in the workspace."""

import argparse

from detection.experiments.repository import Repository
from detection.experiments.restore import restore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `detection apply`."""
    parser.add_argument("name", metavar="RUN", help="id or name of an MLflow run, or name of an experiment")


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags.

    Raises:
        DataError: No run or experiment has the name, or uncommitted changes would be overwritten.
        TrackingError: The MLflow store cannot be read.
    """
    return restore(args.name, Repository())
