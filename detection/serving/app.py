"""The server's routes: predict, health, metrics, and the page."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from torch import Tensor

from detection import __version__
from detection.errors import DataError
from detection.predictor import ImageDetections, Predictor
from detection.serving.batcher import Batcher, QueueFullError
from detection.serving.body_limit import BodyLimit
from detection.serving.model_source import ModelSource
from detection.serving.uploads import TooManyPixelsError, decode_upload

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page.html")
MAX_FILES = 1000
"""Files of a multipart body that are counted; the number accepted is a limit of the server."""
DECODERS = 4
"""Threads that decode images."""
RETRY_S = 1
"""Seconds after which a client may retry when too many images wait."""
DETECTION = {
    "type": "object",
    "required": ["box", "label", "class", "score"],
    "properties": {
        "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
        "label": {"type": "integer", "minimum": 0},
        "class": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    },
}
IMAGE = {
    "type": "object",
    "required": ["file", "width", "height", "detections"],
    "properties": {
        "file": {"type": "string"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "detections": {"type": "array", "items": DETECTION},
    },
}
ANSWER = {
    "type": "object",
    "required": ["model", "version", "images"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "images": {"type": "array", "items": IMAGE},
    },
}
PNG = {"schema": {"type": "string", "format": "binary"}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Detections of each image, or an image with boxes drawn",
        "content": {"application/json": {"schema": ANSWER}, "image/png": PNG},
    },
    400: {"description": "No image, or one that cannot be decoded"},
    413: {"description": "The body or an image is too large"},
    415: {"description": "The body is neither multipart/form-data nor an image"},
    422: {"description": "A query parameter is invalid"},
    503: {"description": "Too many images are waiting; retry later"},
    504: {"description": "The detector took too long"},
}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server."""

    batch_size: int = 8
    """Images per forward pass."""
    delay_s: float = 0.005
    """Seconds that the first image of a batch waits for others."""
    body_bytes: int = 32_000_000
    """Size of a request."""
    pixels: int = 50_000_000
    """Width times height of an image."""
    images: int = 32
    """Images per request."""
    waiting: int = 128
    """Images that wait for the detector."""
    timeout_s: float = 60.0
    """Seconds until a request is answered with 504."""
    reload_s: float = 30.0
    """Seconds between two looks at the file or the alias."""


class Metrics:
    """Metrics in Prometheus' format."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        names = {"registry": self.registry, "namespace": "detection"}
        self.requests = Counter("requests", "Requests to /predict by status code", ["code"], **names)
        self.images = Counter("images", "Images that the detector ran on", **names)
        self.seconds = Histogram("request_seconds", "Time until the answer of /predict", **names)
        self.batch = Histogram("batch_images", "Images per batch", buckets=(1, 2, 4, 8, 16, 32, 64), **names)
        self.batch_seconds = Histogram("batch_seconds", "Time of the detector per batch", **names)
        self.waiting = Gauge("waiting_images", "Images that wait for the detector", **names)
        self.reloads = Counter("reloads", "Times that another detector was loaded", **names)

    def exposition(self) -> Response:
        """Answer of /metrics."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def on_batch(self, count: int, seconds: float) -> None:
        """Count a batch."""
        self.images.inc(count)
        self.batch.observe(count)
        self.batch_seconds.observe(seconds)


def create_app(source: ModelSource, predictor: Predictor, limits: Limits) -> FastAPI:
    """Build the server.

    Args:
        source: Where the detector is from.
        predictor: The loaded detector.
        limits: Limits.
    """
    metrics = Metrics()
    batcher = Batcher(predictor, limits.batch_size, limits.delay_s, limits.waiting, metrics.on_batch)
    metrics.waiting.set_function(lambda: batcher.waiting)
    # fewer threads than Starlette's forty, each of which would keep the memory of its largest image
    decoders = ThreadPoolExecutor(DECODERS, "decoder")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        watcher = asyncio.create_task(_reload(source, batcher, limits.reload_s, metrics))
        yield
        decoders.shutdown()
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        await batcher.stop()

    app = FastAPI(title="detection", version=__version__, lifespan=lifespan)
    app.add_middleware(
        BodyLimit, limit=limits.body_bytes, on_status=lambda code: metrics.requests.labels(str(code)).inc()
    )

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}={first.get('input')}: {first['msg']}"}, 422)

    @app.post("/predict", responses=RESPONSES, openapi_extra={"requestBody": BODY})
    async def predict(
        request: Request,
        threshold: Annotated[float, Query(ge=0, le=1, description="Lowest score")] = 0.5,
        annotated: Annotated[bool, Query(description="Answer with the first image, boxes drawn, as PNG")] = False,
    ) -> Response:
        """Detect objects on one or several images.

        The answer has the form of `detections.json`: per image `file`, `width`, `height` and `detections`, each with
        `box` (`x1, y1, x2, y2` in pixels of the upright image), `label`, `class` and `score`.
        """
        with metrics.seconds.time():
            uploads = await _read(request, limits)
            model = batcher.predictor
            loop, decode = asyncio.get_running_loop(), partial(_decode, limits=limits, upright=model.upright)
            tensors = [await loop.run_in_executor(decoders, decode, *upload) for upload in uploads]
            try:
                found = await asyncio.wait_for(batcher.detect(tensors), limits.timeout_s)
            except QueueFullError:
                raise HTTPException(
                    503, f"{batcher.waiting} images are waiting; retry later", headers={"Retry-After": str(RETRY_S)}
                ) from None
            except TimeoutError:
                raise HTTPException(504, f"no result within {limits.timeout_s:g} s; send fewer images") from None
            except Exception:
                raise HTTPException(500, "the detector failed on this batch; see the server's log") from None
            if annotated:
                content = await run_in_threadpool(_draw, tensors[0], found[0], model.classes, threshold)
                return Response(content, media_type="image/png")
            pairs = zip(uploads, found, strict=True)
            images = [_entry(name, one, threshold) for (name, _), one in pairs]
            return JSONResponse({"model": source.name, "version": source.version, "images": images})

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Return the loaded detector."""
        model = batcher.predictor
        return {
            "status": "ok",
            "model": source.name,
            "version": source.version,
            "recipe": model.model,
            "classes": list(model.classes),
        }

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Return the metrics in Prometheus' format."""
        return metrics.exposition()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    return app


async def _reload(source: ModelSource, batcher: Batcher, interval_s: float, metrics: Metrics) -> None:
    """Replace the detector whenever the file changes or the alias moves."""
    while True:
        await asyncio.sleep(interval_s)
        other = await asyncio.to_thread(source.reload)
        if other is not None:
            batcher.predictor = other
            metrics.reloads.inc()


async def _read(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Name and content of each image of a request."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [("the image", await request.body())]
    if kind != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data with files named images, or an image with type image/jpeg")
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=16)
    except (MultiPartException, HTTPException) as error:
        message = getattr(error, "message", None) or getattr(error, "detail", "")
        raise HTTPException(400, f"the multipart body cannot be read: {message}") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "the request has no image; send files named images")
        if len(files) > limits.images:
            raise HTTPException(413, f"{len(files)} images, and {limits.images} are accepted per request")
        return [(file.filename or f"image {i}", await file.read()) for i, file in enumerate(files)]
    finally:
        await form.close()


def _decode(name: str, content: bytes, limits: Limits, upright: bool) -> Tensor:
    try:
        return decode_upload(name, content, limits.pixels, upright=upright)
    except DataError as error:
        raise HTTPException(413 if isinstance(error, TooManyPixelsError) else 400, str(error)) from None


def _entry(name: str, image: ImageDetections, threshold: float) -> dict[str, Any]:
    height, width = image.size
    count = int((image.scores >= threshold).sum())  # the best come first
    first = slice(0, count)
    kept = replace(
        image,
        boxes=image.boxes[first],
        scores=image.scores[first],
        labels=image.labels[first],
        names=image.names[first],
    )
    return {"file": name, "width": width, "height": height, "detections": kept.to_json()}


def _draw(image: Tensor, found: ImageDetections, classes: tuple[str, ...], threshold: float) -> bytes:
    """PNG of an image with boxes drawn."""
    from PIL import Image

    from detection.report.images.contact_sheet import draw_boxes

    keep = found.scores >= threshold
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    drawn = draw_boxes(pixels, found.boxes[keep], found.labels[keep], classes, found.scores[keep])
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
