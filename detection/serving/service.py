"""What the routes of a server share: the detector and its batches, threads that decode, metrics, and the reload."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from torch import Tensor

from detection.errors import DataError
from detection.serving.batcher import Batcher, QueueFullError, Result
from detection.serving.compute_threads import single_threaded_pool
from detection.serving.counters import Metrics
from detection.serving.limits import Limits
from detection.serving.model_source import ModelSource, ServedModel
from detection.serving.pixel_budget import PixelBudget
from detection.serving.request_limits import RETRY_S
from detection.serving.uploads import TooManyPixelsError, Upload, count_pixels, decode_upload

DECODERS = 4
"""Threads that decode images."""


class DetectionService:
    """Detects on uploads, within limits.

    Args:
        source: Where the detector is from.
        model: The loaded detector.
        limits: Limits.
    """

    def __init__(self, source: ModelSource, model: ServedModel, limits: Limits) -> None:
        self.source, self.limits, self.metrics = source, limits, Metrics()
        self.is_stopping: Callable[[], bool] = lambda: False
        self._batcher = Batcher(model, limits.batch_size, limits.delay_s, limits.waiting, self.metrics.on_batch)
        self.metrics.waiting.set_function(lambda: self._batcher.waiting)
        self._budget = PixelBudget(max(limits.decoded_pixels, limits.pixels))
        # fewer threads than Starlette's forty, each of which would keep the memory of its largest image
        self._decoders = single_threaded_pool(DECODERS, "decoder")

    @property
    def model(self) -> ServedModel:
        """The loaded detector."""
        return self._batcher.model

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start and stop the batches and the reload."""
        self._batcher.start()
        watcher = asyncio.create_task(self._reload())
        try:
            yield
        finally:
            self._decoders.shutdown()
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            await self._batcher.stop()

    async def detect(self, uploads: list[Upload]) -> list[tuple[Tensor, Result]]:
        """Decoded image [3, H, W] and detections, of any score, of each upload.

        Raises:
            HTTPException: 400 and 413 for images that are not accepted, 503 if too many wait, 504 after the timeout.
        """
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                pixels = await self._in_threads(partial(count_pixels, max_pixels=self.limits.pixels), uploads)
                if sum(pixels) > self._budget.limit:
                    total = f"the images have {sum(pixels):,} pixels together, and {self._budget.limit:,} are accepted"
                    raise HTTPException(413, f"{total}; send them in several requests")
                async with self._budget.hold(sum(pixels)):
                    with self._batcher.announced():
                        decode = partial(decode_upload, upright=self.model.predictor.upright)
                        images = await self._in_threads(decode, uploads)
                    return list(zip(images, await self._batcher.detect(images), strict=True))
        except DataError as error:
            raise HTTPException(413 if isinstance(error, TooManyPixelsError) else 400, str(error)) from None
        except QueueFullError:
            detail = f"{self._batcher.waiting} images are waiting; retry later"
            raise HTTPException(503, detail, headers={"Retry-After": str(RETRY_S)}) from None
        except TimeoutError:
            raise HTTPException(504, f"no result within {self.limits.timeout_s:g} s; send fewer images") from None
        except HTTPException:
            raise
        except Exception:  # logged where it happened
            raise HTTPException(500, "the detector failed on this batch; see the server's log") from None

    async def _in_threads(self, function: Any, uploads: list[Upload]) -> list[Any]:
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._decoders, function, upload) for upload in uploads]

    async def _reload(self) -> None:
        """Replace the detector whenever the file changes or the alias moves."""
        while True:
            await asyncio.sleep(self.limits.reload_s)
            other = await asyncio.to_thread(self.source.reload, self.model.version)
            if other is not None:
                self._batcher.model = other
                self.metrics.reloads.inc()
