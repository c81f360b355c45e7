"""`detection check`: validate params.yaml and the dataset, as the `check` stage does."""

import argparse

from detection import params
from detection.data.sources.layout import check_present


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags."""


def run(args: argparse.Namespace) -> str:
    """Check params.yaml and the chosen dataset, and list the overridden values with their source.

    Raises:
        ParamsError: An invalid key, name or value in params.yaml.
        DataError: The dataset is missing.
    """
    chosen = params.load()
    check_present(chosen.dataset, chosen.data)
    lines = [f"params.yaml is valid: {chosen.model} on {chosen.dataset}"]
    lines += [f"  {one.key} = {one.value}  ({one.source})" for one in chosen.overrides]
    return "\n".join(lines)
