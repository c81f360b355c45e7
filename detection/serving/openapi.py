"""What the OpenAPI document says of /predict."""

from typing import Any

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
ERROR = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
PNG = {"schema": {"type": "string", "format": "binary"}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ERROR}}}


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Detections of each image, or an image with boxes drawn",
        "content": {"application/json": {"schema": ANSWER}, "image/png": PNG},
    },
    400: _error("No image, or one that cannot be decoded"),
    408: _error("The body did not arrive in time"),
    413: _error("The body or an image is too large"),
    415: _error("The body is neither multipart/form-data nor an image"),
    422: _error("A query parameter is invalid"),
    503: _error("Too many images are waiting; retry later"),
    504: _error("The detector took too long"),
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
