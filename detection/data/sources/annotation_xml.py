"""Annotation XML of one image, as VOC's devkit, labeling tools and home-made converters write it.

Tags match in any letter case and XML namespace. An object is an element with a `<bndbox>`, at any depth except
in the `<part>` of another object; an element with several boxes is several objects.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

DECLARATION = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)[\"']")
DECLARED = re.compile(r"^\s*<\?xml[^>]*\?>")
DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*>")
UTF8_NAMES = (b"utf-8", b"utf8", b"us-ascii", b"ascii")
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252"}
"""Encodings that files of the declared one are really written in."""
WITHOUT_OBJECTS = {"folder", "filename", "path", "source", "owner", "size", "segmented"}
"""Elements of an annotation that describe the image."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
TRUE = {"1", "1.0", "true", "yes", "y", "t"}
MAX_DEPTH = 8


class XmlObject(NamedTuple):
    """One object as written."""

    name: str
    """Class; empty if missing."""
    corners: tuple[str, ...] | None
    """Text of xmin, ymin, xmax, ymax; None if one is missing."""
    difficult: bool


class XmlAnnotation(NamedTuple):
    """Annotation of one image as written."""

    filename: str
    """Text of `<filename>`; empty if missing."""
    height: int
    """Height in pixels; 0 if unknown."""
    width: int
    objects: list[XmlObject]


def parse(content: bytes) -> XmlAnnotation:
    """Parse an annotation file.

    Raises:
        ValueError: The content is not XML, has entities or an unknown encoding, or is not understood: an image
            without objects is an `<annotation>` in which nothing else looks like objects.
    """
    root = _document(content)
    header: dict[str, ElementTree.Element] = {}
    objects: list[XmlObject] = []
    for child in root:
        tag = _local(child)
        if tag == "object" and not len(child):
            continue  # an empty placeholder
        if tag == "object" and _has_box(child):
            objects += _read_object(child)
        elif tag in WITHOUT_OBJECTS:
            header.setdefault(tag, child)
        elif len(child) or tag == "object":
            for element in _find_objects(child, header, 0):
                objects += _read_object(element)
    if not objects:
        _check_background(root, header)
    elif _local(root) != "annotation" and sum(_local(child) == "annotation" for child in root.iter()) > 1:
        raise ValueError("has several <annotation>; write one file per image")
    height, width = _size(header.get("size"))
    filename = header["filename"].text if "filename" in header else ""
    return XmlAnnotation((filename or "").strip(), height, width, objects)


def _document(content: bytes) -> ElementTree.Element:
    """Parse XML in its declared encoding. Refuse entities, which can make a small file expand without limit."""
    declared = DECLARATION.match(content.lstrip()[:200])
    utf8 = declared is None or declared[1].lower() in UTF8_NAMES
    if utf8 and b"\0" not in content and b"<!" not in content and (declared is None or declared[1].lower() != b"utf8"):
        try:
            return ElementTree.fromstring(content)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise ValueError(f"is not valid XML: {error}") from None
    text = _decode(content, "utf-8" if declared is None else declared[1].decode())
    if "<!ENTITY" in text or ("<!DOCTYPE" in text and not DOCTYPE.search(text)):
        raise ValueError("has a DOCTYPE with declarations or an ENTITY; remove them")
    try:
        return ElementTree.fromstring(DOCTYPE.sub("", DECLARED.sub("", text), count=1))
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"is not valid XML: {error}") from None


def _decode(content: bytes, encoding: str) -> str:
    """Decode by byte order mark, else as declared."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            encoding = name
    if b"\0" in content[:4] and not encoding.startswith("utf-16"):
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(f"has the unknown encoding {encoding!r}; save it as UTF-8") from None
    try:
        return content.decode(SUPERSETS.get(name, name)).lstrip("\ufeff")
    except (UnicodeDecodeError, LookupError) as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"is not {encoding}{where}; save it as UTF-8") from None


def _local(element: ElementTree.Element) -> str:
    """Tag without namespace, in lower case."""
    tag = element.tag
    if not isinstance(tag, str):  # a comment
        return ""
    return (tag.rpartition("}")[2] if tag[:1] == "{" else tag).lower()


def _has_box(element: ElementTree.Element) -> bool:
    return any(_local(child) == "bndbox" for child in element)


def _find_objects(
    element: ElementTree.Element, header: dict[str, ElementTree.Element], depth: int
) -> Iterator[ElementTree.Element]:
    """Yield the objects in an element, and an `<object>` without a box, which is reported."""
    if _has_box(element):
        yield element
        return
    found = False
    for child in element if depth < MAX_DEPTH else ():
        tag = _local(child)
        if tag in WITHOUT_OBJECTS:
            header.setdefault(tag, child)
        elif len(child) and tag != "part":
            for one in _find_objects(child, header, depth + 1):
                found = True
                yield one
    if not found and _local(element) == "object" and len(element):
        yield element


def _read_object(entry: ElementTree.Element) -> Iterator[XmlObject]:
    """Yield one object per box of an element; one without corners if it has no box."""
    name, difficult = "", False
    boxes: list[tuple[str, ...] | None] = []
    for child in entry:
        tag = _local(child)
        if tag == "name":
            name = name or (child.text or "").strip()
        elif tag == "bndbox":
            corners = {_local(corner): corner.text or "" for corner in child}
            complete = all(corner in corners for corner in CORNERS)
            boxes.append(tuple(corners[corner] for corner in CORNERS) if complete else None)
        elif tag == "difficult":
            difficult = (child.text or "").strip().lower() in TRUE
    for corner_texts in boxes or [None]:
        yield XmlObject(name, corner_texts, difficult)


def _check_background(root: ElementTree.Element, header: dict[str, ElementTree.Element]) -> None:
    """Raise ValueError for a file without objects that may hold some in another format."""
    if _local(root) != "annotation" and "size" not in header:
        raise ValueError(f"has no <annotation> and no <object> with a <bndbox>; its root is <{root.tag}>")
    for child in root:
        tag = _local(child)
        if tag not in WITHOUT_OBJECTS and (tag == "bndbox" or sum(map(_is_number, child.iter())) >= len(CORNERS)):
            raise ValueError(f"has no <object> with a <bndbox>, but <{child.tag}>, which is not understood")


def _is_number(element: ElementTree.Element) -> bool:
    try:
        return bool(element.text) and float(element.text or "") >= 0
    except ValueError:
        return False


def _size(element: ElementTree.Element | None) -> tuple[int, int]:
    """Height and width; 0 where they are unknown."""
    if element is None:
        return 0, 0
    texts = {_local(entry): (entry.text or "").strip() for entry in element}
    sides = []
    for key in ("height", "width"):
        text = texts.get(key, "")
        try:
            sides.append(round(float(text)) if text and len(text) < 12 else 0)
        except (ValueError, OverflowError):
            sides.append(0)
    return (sides[0], sides[1]) if min(sides) > 0 else (0, 0)
