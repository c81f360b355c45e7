"""Video files and cameras: frames in, annotated video out, by PyAV (FFmpeg), an optional package."""

import glob
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detection.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

INSTALL = "pip install av"
TIME_BASE = Fraction(1, 60_000)
"""Unit of a written frame's time: whole numbers at 24, 25, 30, 50, 60 and 30000/1001 frames per second."""
DEFAULT_RATE = 25
COMPLETE = 0.95
"""Fraction of its duration or frames from which a video counts as complete: containers round both."""


class Frame(NamedTuple):
    """A frame of a video."""

    number: int
    """From 0, counting frames that are left out too."""
    time: float
    """Seconds from the first frame."""
    image: NDArray[np.uint8]
    """[H, W, 3] RGB, the right way up."""


class Video:
    """An open video file or camera; a context manager.

    Args:
        name: Name in messages and of the results.
        container: PyAV's input container.
    """

    def __init__(self, name: str, container: Any) -> None:
        self.name, self._container = name, container
        if not container.streams.video:
            container.close()
            raise DataError(f"{name} has no video stream")
        self._stream = container.streams.video[0]
        self._decoded, self._damaged, self._end = 0, 0, 0.0

    @classmethod
    def open(cls, path: Path) -> "Video":
        """Open a file.

        Raises:
            DataError: PyAV is not installed, or it is not a video.
        """
        av = pyav(str(path))
        try:
            return cls(str(path), av.open(str(path)))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{path} cannot be read as a video: {error.strerror}") from None

    @classmethod
    def open_camera(cls, index: int) -> "Video":
        """Open a camera by its number.

        Raises:
            DataError: PyAV is not installed, or the camera does not exist.
        """
        av = pyav(f"camera {index}")
        file, form = (str(index), "avfoundation") if sys.platform == "darwin" else (f"/dev/video{index}", "v4l2")
        try:
            return cls(f"camera{index}", av.open(file, format=form))
        except (av.FFmpegError, OSError) as error:
            others = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
            raise DataError(
                f"camera {index} ({file}) cannot be opened: {error.strerror}; there are: {others}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def rate(self) -> Fraction:
        """Average number of frames per second."""
        return Fraction(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every n-th frame; damaged parts are left out, see `problem`."""
        start: float | None = None
        for frame in self._decode():
            index, self._decoded = self._decoded, self._decoded + 1
            time = float(index / self.rate) if frame.time is None else frame.time
            start = time if start is None else start
            self._end = time - start + float(1 / self.rate)
            if index % every == 0:
                image = frame.to_ndarray(format="rgb24")
                turns = round((frame.rotation or 0) / 90) % 4
                yield Frame(index, time - start, np.ascontiguousarray(np.rot90(image, turns)))

    def _decode(self) -> Iterator[Any]:
        av = pyav(self.name)
        packets = self._container.demux(self._stream)
        while True:
            try:
                for frame in next(packets).decode():
                    self._damaged += frame.is_corrupt
                    yield frame
            except (StopIteration, av.EOFError):
                return
            except av.InvalidDataError:
                self._damaged += 1
            except (av.FFmpegError, OSError):  # a camera that was unplugged, a disk that fails
                self._damaged += 1
                return

    def problem(self) -> str | None:
        """Problem of a video that was read to its end: damaged parts, or an early end; None without one."""
        read = f"{self._decoded} frames ({self._end:.1f} s) were read"
        frames, seconds = self._expected()
        if self._decoded < COMPLETE * frames or self._end < COMPLETE * seconds:
            return f"{read} of " + (f"{frames} frames" if frames else f"{seconds:.1f} s")
        return f"{read}, {self._damaged} parts are damaged" if self._damaged else None

    def _expected(self) -> tuple[int, float]:
        """Number of frames and seconds by the file's header; 0 if unknown."""
        stream, container = self._stream, self._container
        if text := stream.metadata.get("DURATION"):  # Matroska
            hours, minutes, seconds = (float(part) for part in text.split(":"))
            return stream.frames, 3600 * hours + 60 * minutes + seconds
        if stream.duration and stream.time_base:
            return stream.frames, float(stream.duration * stream.time_base)
        alone = len(container.streams) == 1 and container.duration
        return stream.frames, container.duration / 1e6 if alone else 0.0


class VideoWriter:
    """An MP4 file in H.264, or MPEG-4 where FFmpeg lacks H.264; a context manager that completes it.

    Args:
        path: The file.
        rate: Frames per second, for the encoder; frames keep their own times.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av = pyav(str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container, self._rate = self._av.open(str(path), "w"), rate
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def write(self, image: "Image.Image", time: float) -> None:
        """Append a frame; later ones are resized to the first one's size."""
        if self._stream is None:
            self._stream = self._add_stream(image.width, image.height)
        size = self._stream.width, self._stream.height
        if (image.width + image.width % 2, image.height + image.height % 2) == size:
            image = image.crop((0, 0, *size))  # odd sides get a black line
        else:
            image = image.resize(size)
        frame = self._av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
        self._last = max(self._last + 1, round(time / TIME_BASE))
        frame.pts, frame.time_base = self._last, TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, width: int, height: int) -> Any:
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        if codec == "mpeg4":
            stream.codec_context.qmin = stream.codec_context.qmax = 4
        return stream


def pyav(name: str) -> Any:
    """PyAV.

    Raises:
        DataError: It is not installed.
    """
    try:
        import av
    except ImportError:
        raise DataError(f"{name}: videos and cameras need PyAV: {INSTALL}") from None
    return av
