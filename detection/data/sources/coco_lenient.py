"""COCO instances files as other tools write and read them, brought into the strict form.

Ids may be text or floats, flags null or text, sizes absent, null or text, names numbers; NaN and infinity are
allowed in unused fields. Entries that stay invalid keep their values, so that decoding them names the problem.
"""

import json
from collections.abc import Mapping
from typing import Any

KEYS = ("images", "annotations", "categories")
FLAGS = {None: 0, "": 0, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def parse(content: bytes) -> Any:
    """Parse JSON in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: Invalid JSON or another encoding; names the position.
    """
    encoding = json.detect_encoding(content)
    try:
        return json.loads(content.decode(encoding))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not {encoding.upper()} at byte {error.start}, line {line}: save it as UTF-8") from None


def normalize(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return images, annotations and categories with integer ids, flags and sizes; other fields are unchanged."""
    lists = {key: [*document[key]] if isinstance(document.get(key), list) else [] for key in KEYS}
    images, categories = (_numbers([_id(one.get("id")) for one in lists[key] if _is_object(one)]) for key in KEYS[::2])
    return {
        "images": [_image(one, images) if _is_object(one) else one for one in lists["images"]],
        "annotations": [
            _annotation(one, images, categories) if _is_object(one) else one for one in lists["annotations"]
        ],
        "categories": [_category(one, categories) if _is_object(one) else one for one in lists["categories"]],
    }


def _is_object(entry: Any) -> bool:
    return isinstance(entry, dict)


def _id(value: Any) -> str:
    """Text of an id, equal for 1, 1.0 and "1"; empty for none."""
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value).strip()
    return text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text


def _numbers(ids: list[str]) -> dict[str, int]:
    """Integers of ids: the ids themselves if all are integers, else 1, 2, … in their order."""
    whole = all(one.removeprefix("-").isdecimal() and str(int(one)) == one and len(one) < 19 for one in ids)
    return {one: int(one) if whole else number for number, one in enumerate(dict.fromkeys(ids), 1) if one}


def _image(entry: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    name = _id(entry.get("id"))
    number = ids.get(name, entry.get("id"))
    text = {} if str(number) == name else {"text_id": name}
    sides = {key: _side(entry.get(key)) for key in ("height", "width")}
    return {**entry, "id": number, **sides, **text}


def _annotation(entry: dict[str, Any], images: Mapping[str, int], categories: Mapping[str, int]) -> dict[str, Any]:
    image, category = _id(entry.get("image_id")), _id(entry.get("category_id"))
    fixed = {
        **entry,
        "image_id": images.get(image, -1 if image else entry.get("image_id")),
        "category_id": categories.get(category, -1 if category else entry.get("category_id")),
        "iscrowd": _flag(entry.get("iscrowd")),
        "ignore": _flag(entry.get("ignore")),
        "area": _number(entry.get("area")),
    }
    if isinstance(bbox := entry.get("bbox"), list):
        fixed["bbox"] = [one if (number := _number(one)) is None else number for one in bbox]
    return fixed


def _category(entry: dict[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    name = entry.get("name")
    text = str(name) if isinstance(name, int | float) else name
    return {**entry, "id": ids.get(_id(entry.get("id")), entry.get("id")), "name": text}


def _flag(value: Any) -> Any:
    """0 or 1 for a missing flag, text or a float; any other value as it is."""
    if isinstance(value, float) and value in (0, 1):
        return int(value)
    if value is None or isinstance(value, str):
        return FLAGS.get(value and value.strip().lower(), value)
    return value


def _number(value: Any) -> float | None:
    """Finite number, also of text; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _side(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1e9 else None
