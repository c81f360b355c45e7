"""Names in messages: the nearest valid spelling, the first of many."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def did_you_mean(given: object, valid: Iterable[object]) -> str:
    """`did you mean 'x'?` for the nearest of the valid spellings, else the list of them all."""
    names = [str(name) for name in valid]
    close = get_close_matches(str(given).lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    if close:
        nearest = next(name for name in names if name.lower() == close[0])
        return f"did you mean {nearest!r}?"
    return "choose one of " + ", ".join(names)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
