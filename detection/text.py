"""Text of messages and tables: spelling suggestions, shortened lists, numbers, dotted keys."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


def did_you_mean(name: object, valid: Iterable[object]) -> str:
    """Return `did you mean 'x'?` for the nearest valid spelling, else the list of all valid names."""
    names = [str(value) for value in valid]
    close = get_close_matches(str(name).lower(), [value.lower() for value in names], n=1, cutoff=0.6)
    if close:
        nearest = next(value for value in names if value.lower() == close[0])
        return f"did you mean {nearest!r}?"
    return "choose one of " + ", ".join(names)


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Return the first names, comma-separated, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def number(value: float | None, form: str = ".3f", missing: str = "-") -> str:
    """Format a number; None and NaN become `missing`."""
    return missing if value is None or math.isnan(value) else format(value, form)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one mapping of dotted keys to plain values.

    Tuples become lists, in which mappings lose their keys without a value.
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = list(map(_without_nulls, value)) if isinstance(value, tuple | list) else value
    return values


def _without_nulls(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
