"""The detector that a server has loaded, and when it must load another."""

import logging
from dataclasses import dataclass
from pathlib import Path

from detection.predictor import Predictor, load
from detection.serving.compute_threads import in_ending_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded detector."""

    predictor: Predictor
    version: str
    """Version that its name stood for when it was loaded."""


class ModelSource:
    """A detector file, an experiment, an MLflow run or a registry URI.

    Args:
        name: As `detection.load` takes it.
        device: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    def load(self) -> ServedModel:
        """Load the detector."""
        version = self._current()  # before the file is read: if it changes meanwhile, it is loaded again
        return ServedModel(in_ending_thread(lambda: load(self.name, device=self.device)), version)

    def reload(self, version: str) -> ServedModel | None:
        """Load the detector again if it has another version; None if it has not, or if that fails."""
        try:
            if self._current() == version:
                return None
            model = self.load()
        except Exception as error:  # the registry is down, or the file is being written: keep the detector
            log.warning("%s cannot be loaded again, the loaded detector stays: %s", self.name, error)
            return None
        log.info("%s: version %s instead of %s", self.name, model.version, version)
        return model

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
