"""`detection compare`: differing params, scores, and which experiment is better."""

import argparse
import tempfile
from pathlib import Path

from detection.errors import DataError

MIN_ROUNDS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `detection compare`."""
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="name in `dvc exp show`, id or name of an MLflow run, git revision, or workspace",
    )
    parser.add_argument("--rounds", type=int, default=1000, help="bootstrap rounds; default: %(default)s")


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags."""
    return compare(args.experiments, args.rounds)


def compare(experiments: list[str], rounds: int) -> str:
    """Compare experiments with the first of them.

    Args:
        experiments: Two or more names, as `find` takes them.
        rounds: Bootstrap rounds over images.

    Raises:
        DataError: An experiment does not exist or was not evaluated, or the test data differs.
        TrackingError: The MLflow store cannot be read.
    """
    if len(experiments) < 2:
        raise DataError("a comparison needs two or more experiments: detection compare workspace HEAD")
    if rounds < MIN_ROUNDS:
        raise DataError(f"--rounds {rounds}: an interval needs {MIN_ROUNDS} or more rounds")

    from detection.experiments import compare as comparison
    from detection.experiments import compare_text
    from detection.experiments.find import find
    from detection.experiments.repository import Repository

    repository = Repository()
    found = [find(name, repository) for name in experiments]
    with tempfile.TemporaryDirectory(prefix="detection-compare-") as scratch:
        data = []
        for i, experiment in enumerate(found):
            folder = Path(scratch, str(i))
            folder.mkdir()
            data.append(comparison.read(experiment, folder))
    comparison.check_same_test(data)
    return compare_text.write(data, comparison.compare(data, rounds))
