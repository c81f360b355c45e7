"""Contents of result files that official tools accept although the format does not allow them."""

import logging
from pathlib import Path

from detection.errors import DataError

log = logging.getLogger(__name__)


class Deviations:
    """Counts of deviations from the format, per file.

    Args:
        strict: Raise for the first deviation instead.
    """

    def __init__(self, strict: bool = False) -> None:
        self._strict = strict
        self._found: dict[Path, list[str]] = {}

    def add(self, path: Path, count: int, description: str, example: str = "") -> None:
        """Count a deviation; a count of 0 is none.

        Raises:
            DataError: Deviations are refused.
        """
        if not count:
            return
        text = f"{count:,} {description}" + (f" (first: {example})" if example else "")
        if self._strict:
            raise DataError(f"{path}: {text}; fix the file, or score it without --strict")
        self._found.setdefault(path, []).append(text)

    def warn(self) -> None:
        """Log one line per file."""
        for path, texts in self._found.items():
            log.warning("%s: scored as official tools do: %s", path, "; ".join(texts))
