"""Object-detection experiments as a DVC pipeline, with one MLflow run per experiment.

    import detection

    detector = detection.load("models/detector.pt")
    for image in detector.predict("folder"):
        print(image.path, image.boxes, image.scores, image.labels, image.names)
    print(detector.evaluate("test").stats["AP"])
    detector.export("export")

Importing the package imports neither torch nor mlflow; the first use of a name below does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from detection.errors import DetectionError

if TYPE_CHECKING:
    from detection.evaluation.evaluate import Evaluation
    from detection.predictor import ImageDetections, Predictor, load

__version__ = "0.2.0"
__all__ = ["DetectionError", "Evaluation", "ImageDetections", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "evaluation.evaluate" if name == "Evaluation" else "predictor"
    return getattr(import_module(f"detection.{module}"), name)


def __dir__() -> list[str]:
    return __all__
