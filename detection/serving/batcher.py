"""Dynamic batches: images of concurrent requests go through the detector together."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from torch import Tensor

from detection.predictor import ImageDetections
from detection.serving.memory import return_free_memory
from detection.serving.model_source import ServedModel

log = logging.getLogger(__name__)
TRIM_S = 30
"""Seconds between two returns of freed memory."""


class QueueFullError(Exception):
    """More images are waiting than the server accepts."""


@dataclass(frozen=True, slots=True)
class Result:
    """Detections on one image, and the model that made them."""

    detections: ImageDetections
    model: ServedModel


@dataclass(frozen=True, slots=True)
class _Waiting:
    image: Tensor
    result: "asyncio.Future[Result]"


class Batcher:
    """Runs a detector in one thread, on batches of the images that wait.

    A batch starts when the detector is free and it is full, or no other image is being decoded, or `delay_s` after its
    first image. So a single client never waits for others.

    Args:
        model: The detector; may be replaced between two batches.
        batch_size: Maximum number of images.
        delay_s: Seconds to wait for images that are being decoded.
        limit: Maximum number of waiting images.
        on_batch: Called with the number of images and the seconds of each batch.
    """

    def __init__(
        self,
        model: ServedModel,
        batch_size: int,
        delay_s: float,
        limit: int,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self.model, self.batch_size, self.delay_s, self.limit = model, batch_size, delay_s, limit
        self._on_batch = on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._announced, self._changed = 0, asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # always the same thread: torch and malloc keep memory for each thread that ever ran the detector
        self._thread = ThreadPoolExecutor(1, "detector")

    def start(self) -> None:
        """Start the task that takes images from the queue; in a running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the current batch."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """Number of images in the queue."""
        return self._queue.qsize()

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Images that are being decoded in this context are worth waiting for."""
        self._announced += 1
        try:
            yield
        finally:
            self._announced -= 1
            self._changed.set()

    async def detect(self, images: Sequence[Tensor]) -> list[Result]:
        """Detections on uint8 RGB images [3, H, W], of any score.

        Raises:
            QueueFullError: Too many images are waiting.
        """
        if self.waiting + len(images) > self.limit:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        entries = [_Waiting(image, loop.create_future()) for image in images]
        for entry in entries:
            self._queue.put_nowait(entry)
        self._changed.set()
        try:
            return list(await asyncio.gather(*(entry.result for entry in entries)))
        finally:
            for entry in entries:  # a request that timed out, or whose client is gone, is not computed
                entry.result.cancel()

    async def _run(self) -> None:
        loop, trimmed = asyncio.get_running_loop(), time.monotonic()
        while True:
            batch = [entry for entry in await self._next_batch() if not entry.result.done()]
            if not batch:
                continue
            start, model = time.perf_counter(), self.model
            images = [entry.image for entry in batch]
            try:
                found = await loop.run_in_executor(self._thread, self._detect, model, images)
            except Exception as error:  # the batch fails, the server keeps running
                log.exception("a batch of %d images failed", len(batch))
                for entry in batch:
                    if not entry.result.done():
                        entry.result.set_exception(error)
                continue
            for entry, detections in zip(batch, found, strict=True):
                if not entry.result.done():
                    entry.result.set_result(Result(detections, model))
            self._on_batch(len(batch), time.perf_counter() - start)
            if time.monotonic() - trimmed > TRIM_S:
                await loop.run_in_executor(self._thread, return_free_memory)
                trimmed = time.monotonic()

    async def _next_batch(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + self.delay_s
        while len(batch) < self.batch_size:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            if not self._announced:
                break
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                break
        return batch

    def _detect(self, model: ServedModel, images: list[Tensor]) -> list[ImageDetections]:
        return list(model.predictor.predict(images, score_threshold=0.0, batch_size=self.batch_size))
