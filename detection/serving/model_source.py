"""The detector that a server has loaded, and when it must load another."""

import logging
from pathlib import Path

from detection.predictor import Predictor, load

log = logging.getLogger(__name__)


class ModelSource:
    """A detector file, an experiment, an MLflow run or a registry URI.

    Args:
        name: As `detection.load` takes it.
        device: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self.version = self._current()

    def load(self) -> Predictor:
        """Load the detector."""
        return load(self.name, device=self.device)

    def reload(self) -> Predictor | None:
        """Load the detector again if the file changed or the alias moved; None if it did not, or if that fails."""
        try:
            current = self._current()
            if current == self.version:
                return None
            predictor = self.load()
        except Exception as error:  # the registry is down, or the file is being written: keep the detector
            log.warning("%s cannot be loaded again, the loaded detector stays: %s", self.name, error)
            return None
        log.info("%s: version %s instead of %s", self.name, current, self.version)
        self.version = current
        return predictor

    def _current(self) -> str:
        """Version that the name stands for now."""
        path = Path(self.name)
        if path.is_file():
            status = path.stat()
            return f"{status.st_mtime_ns}-{status.st_size}"
        if self.name.startswith("models:/") and "@" in self.name:
            from detection.tracking.store import connect

            registered, alias = self.name.removeprefix("models:/").rsplit("@", 1)
            return str(connect().client.get_model_version_by_alias(registered, alias).version)
        return self.name
