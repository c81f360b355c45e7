"""A registered detector as `mlflow.pyfunc` loads it. The model's own `code` folder holds this module too."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.device import pick_device
from detection.inference import above_threshold, detect_image, detections_to_json
from detection.models.build import LoadedDetector, load_detector

if TYPE_CHECKING:
    import pandas as pd

THRESHOLD = 0.5


class RegisteredDetector:
    """Finds objects on picture files."""

    def __init__(self, loaded: LoadedDetector) -> None:
        self._loaded = loaded

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Detect on pictures, one after the other.

        Args:
            model_input: Column `image`: the bytes of picture files (JPEG, PNG, …), one a row.
            params: `threshold`: detections that score lower are left out.

        Returns:
            Columns `width`, `height` in pixels and `detections`: a list of `{box, label, class, score}` as
            `detection predict` writes them, boxes `x1, y1, x2, y2` in pixels of the picture as stored.

        Raises:
            DataError: Bytes that are no picture.
        """
        import pandas as pd

        threshold = float((params or {}).get("threshold", THRESHOLD))
        return pd.DataFrame([self._detect(image, threshold) for image in model_input["image"]])

    def _detect(self, image: bytes, threshold: float) -> dict[str, Any]:
        from detection.data.loading.image_io import read_image

        with tempfile.NamedTemporaryFile(prefix="picture-") as file:
            file.write(image)
            file.flush()
            picture = read_image(Path(file.name))
        found = detect_image(self._loaded.detector, self._loaded.recipe, picture)
        height, width = picture.shape[1:]
        detections = detections_to_json(*above_threshold(found, threshold), self._loaded.classes)
        return {"width": width, "height": height, "detections": detections}


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> RegisteredDetector:
    """MLflow calls this with the detector's file; `model_config={"device": "cpu"}` keeps it off a GPU."""
    device = pick_device((model_config or {}).get("device", "auto"))
    return RegisteredDetector(load_detector(path, device))
