"""Limits of a server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server."""

    batch_size: int = 16
    """Images per forward pass."""
    delay_s: float = 0.005
    """Seconds that the first image of a batch waits for images that are being decoded."""
    body_bytes: int = 32_000_000
    """Size of a request."""
    pixels: int = 50_000_000
    """Width times height of an image."""
    decoded_pixels: int = 250_000_000
    """Pixels of the images that are decoded at the same time; further requests wait, still compressed."""
    images: int = 32
    """Images per request."""
    waiting: int = 128
    """Images that wait for the detector, and requests that are answered at the same time."""
    timeout_s: float = 60.0
    """Seconds until a body must have arrived, and seconds until the detector must have answered."""
    reload_s: float = 30.0
    """Seconds between two looks at the file or the alias."""
