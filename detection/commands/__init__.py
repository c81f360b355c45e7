"""Commands of `detection`: each module holds a group of commands, their flags beside their functions."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from detection.files import DETECTOR


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the command's flags to its parser."""
    run: Callable[[argparse.Namespace], str]
    """Runs the command with parsed flags; returns what it prints."""


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument of a command that loads a detector."""
    text = "detector file, experiment, MLflow run, or models:/NAME@ALIAS; default: %(default)s"
    parser.add_argument("source", nargs="?", default=str(DETECTOR), help=text)
