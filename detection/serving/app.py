"""The server's routes: predict, health, metrics, and the page."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from detection import __version__
from detection.predictor import ImageDetections
from detection.serving.limits import Limits
from detection.serving.model_source import ModelSource, ServedModel
from detection.serving.openapi import BODY, RESPONSES
from detection.serving.request_limits import RequestLimits
from detection.serving.service import DetectionService
from detection.serving.uploads import read_uploads
from detection.text import did_you_mean

PAGE = Path(__file__).with_name("page.html")
MAX_VALUE = 40
"""Characters of an invalid value in messages."""
router = APIRouter()


class PredictQuery(BaseModel):
    """Query parameters of /predict."""

    model_config = ConfigDict(extra="forbid")
    threshold: Annotated[float, Field(ge=0, le=1, description="Lowest score")] = 0.5
    annotated: Annotated[bool, Field(description="Answer with the first image, boxes drawn, as PNG")] = False


def create_app(source: ModelSource, model: ServedModel, limits: Limits) -> FastAPI:
    """Build the server.

    Args:
        source: Where the detector is from.
        model: The loaded detector.
        limits: Limits.
    """
    service = DetectionService(source, model, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="detection", version=__version__, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(
        RequestLimits,
        limits=limits,
        on_status=service.metrics.on_status,
        is_stopping=lambda: service.is_stopping(),  # set once the server exists
    )
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.include_router(router)
    return app


@router.post("/predict", responses=RESPONSES, openapi_extra={"requestBody": BODY})
async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
    """Detect objects on one or several images.

    The answer has the form of `detections.json`: per image `file`, `width`, `height` and `detections`, each with
    `box` (`x1, y1, x2, y2` in pixels of the upright image), `label`, `class` and `score`.
    """
    service = _service(request)
    with service.metrics.seconds.time():
        uploads = await read_uploads(request, service.limits.images)
        answers = await service.detect(uploads)
        image, result = answers[0]
        if query.annotated:
            classes = result.model.predictor.classes
            content = await run_in_threadpool(_draw, image, result.detections, classes, query.threshold)
            return Response(content, media_type="image/png")
        pairs = zip(uploads, answers, strict=True)
        images = [_entry(upload.name, one.detections, query.threshold) for upload, (_, one) in pairs]
        return JSONResponse({"model": service.source.name, "version": result.model.version, "images": images})


@router.get("/healthz")
async def healthz(request: Request) -> dict[str, Any]:
    """Return the loaded detector."""
    service = _service(request)
    predictor = service.model.predictor
    return {
        "status": "ok",
        "model": service.source.name,
        "version": service.model.version,
        "recipe": predictor.model,
        "classes": list(predictor.classes),
    }


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' format."""
    return _service(request).metrics.exposition()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> str:
    """Return the page for people."""
    return PAGE.read_text(encoding="utf-8")


def _service(request: Request) -> DetectionService:
    service: DetectionService = request.app.state.service
    return service


async def _on_invalid(_: Request, error: Exception) -> Response:
    """One line about the first invalid query parameter."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, value = ascii(str(first["loc"][-1]))[1:-1][:MAX_VALUE], ascii(first.get("input"))[:MAX_VALUE].strip("'")
    if first["type"] == "extra_forbidden":
        message = f"unknown query parameter {name}; {did_you_mean(name, PredictQuery.model_fields)}"
    else:
        message = f"{name}={value}: {first['msg']}"
    return JSONResponse({"detail": message}, 422)


def _entry(name: str, image: ImageDetections, threshold: float) -> dict[str, Any]:
    """Element of the answer's `images`."""
    height, width = image.size
    first = slice(0, int((image.scores >= threshold).sum()))  # the best come first
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
