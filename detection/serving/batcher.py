"""Dynamic batches: images of concurrent requests go through the detector together."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from detection.predictor import ImageDetections, Predictor
from detection.serving.memory import return_free_memory

log = logging.getLogger(__name__)
TRIM_S = 5
"""Seconds between two returns of freed memory."""


class QueueFullError(Exception):
    """More images are waiting than the server accepts."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    image: Tensor
    result: "asyncio.Future[ImageDetections]"


class Batcher:
    """Runs a detector in one thread, on batches of the images that wait.

    A batch starts when it is full, or `delay_s` after its first image.

    Args:
        predictor: The detector; may be replaced between two batches.
        batch_size: Maximum number of images.
        delay_s: Seconds to wait for further images.
        limit: Maximum number of waiting images.
        on_batch: Called with the number of images and the seconds of each batch.
    """

    def __init__(
        self,
        predictor: Predictor,
        batch_size: int,
        delay_s: float,
        limit: int,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self.predictor, self.batch_size, self.delay_s, self.limit = predictor, batch_size, delay_s, limit
        self._on_batch = on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
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

    async def detect(self, images: Sequence[Tensor]) -> list[ImageDetections]:
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
            start = time.perf_counter()
            images = [entry.image for entry in batch]
            try:
                found = await loop.run_in_executor(self._thread, self._detect, images)
            except Exception as error:  # the batch fails, the server keeps running
                log.exception("a batch of %d images failed", len(batch))
                for entry in batch:
                    if not entry.result.done():
                        entry.result.set_exception(error)
                continue
            self._on_batch(len(batch), time.perf_counter() - start)
            if time.monotonic() - trimmed > TRIM_S:
                await loop.run_in_executor(self._thread, return_free_memory)
                trimmed = time.monotonic()
            for entry, detections in zip(batch, found, strict=True):
                if not entry.result.done():
                    entry.result.set_result(detections)

    async def _next_batch(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        deadline = time.monotonic() + self.delay_s
        while len(batch) < self.batch_size:
            try:
                remaining = deadline - time.monotonic()
                entry = (
                    self._queue.get_nowait() if remaining <= 0 else await asyncio.wait_for(self._queue.get(), remaining)
                )
            except (TimeoutError, asyncio.QueueEmpty):
                break
            batch.append(entry)
        return batch

    def _detect(self, images: list[Tensor]) -> list[ImageDetections]:
        return list(self.predictor.predict(images, score_threshold=0.0, batch_size=self.batch_size))
