"""A registered detector as `mlflow.pyfunc` loads it; the model's own `code` folder holds this module too."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.predictor import Predictor, load
from detection.tracking.model_folder import THRESHOLD

if TYPE_CHECKING:
    import pandas as pd


class RegisteredDetector:
    """Detects objects on image files."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Detect on images, one after the other.

        Args:
            model_input: Column `image`: bytes of one image file (JPEG, PNG, …) per row.
            params: `threshold`: detections with a lower score are left out.

        Returns:
            Columns `width`, `height` in pixels and `detections`: a list of `{box, label, class, score}` as
            `detection predict` writes them, boxes `x1, y1, x2, y2` in pixels of the image
            after its EXIF rotation.

        Raises:
            DataError: Bytes that are not an image.
        """
        import pandas as pd

        threshold = float((params or {}).get("threshold", THRESHOLD))
        with tempfile.TemporaryDirectory(prefix="detection-images-") as folder:
            paths = [Path(folder, f"row_{row}") for row in range(len(model_input))]
            for path, content in zip(paths, model_input["image"], strict=True):
                path.write_bytes(content)
            images = self._predictor.predict(paths, score_threshold=threshold, batch_size=1)
            return pd.DataFrame(
                [{"width": image.size[1], "height": image.size[0], "detections": image.to_json()} for image in images]
            )


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> RegisteredDetector:
    """Called by MLflow with the detector file; `model_config={"device": "cpu"}` selects the device."""
    return RegisteredDetector(load(path, device=(model_config or {}).get("device", "auto")))
