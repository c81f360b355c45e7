"""Commands of `detection`: each module holds a group of commands, their flags beside their functions."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the command's flags to its parser."""
    run: Callable[[argparse.Namespace], str]
    """Runs the command with parsed flags; returns what it prints."""
