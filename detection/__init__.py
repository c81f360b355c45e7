"""Object-detection experiments as a DVC pipeline with one MLflow row each."""

__version__ = "0.1.0"
