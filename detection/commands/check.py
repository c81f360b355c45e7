"""`detection check`: what the `check` stage checks, and what params.yaml comes to."""

from detection import params
from detection.data.sources.layout import check_present


def check() -> str:
    """Check params.yaml and the chosen dataset; returns what the recipe became and why.

    Raises:
        ParamsError: A slip in params.yaml.
        DataError: The dataset is not there.
    """
    chosen = params.load()
    check_present(chosen.dataset, chosen.data)
    lines = [f"params.yaml is fine: {chosen.model} on {chosen.dataset}"]
    lines += [f"  {one.key} = {one.value}  ({one.source})" for one in chosen.overrides]
    return "\n".join(lines)
