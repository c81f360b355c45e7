"""Requests that a server must answer with one line, and good ones of rare kinds, for `tests.soak.serving --bad`.

Each is the raw bytes of a request, or a function that sends them slowly, with the status codes that are right.
"""

import io
import json
import socket
import struct
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

TIMEOUT_S = 60.0
ENDLESS = 2_000
"""Chunks of 64 KiB that an endless body has at most: 131 MB."""
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@dataclass(frozen=True, slots=True)
class Case:
    """A request and the statuses that are right."""

    name: str
    parts: Sequence[bytes] | Callable[[], Iterator[bytes]]
    """Bytes to send."""
    expected: tuple[int, ...]


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (60, 80), **options: object) -> bytes:
    """Return an image file with random content."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, size, dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    """Return a PNG whose header has any size, with any pixel data."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def request(
    body: bytes = b"",
    kind: str | None = "image/jpeg",
    path: str = "/predict",
    method: str = "POST",
    head: str = "",
    length: bool = True,
) -> list[bytes]:
    """Return an HTTP request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Content-Length: {len(body)}"] if length else []
    return ["\r\n".join([*lines, *head.splitlines()]).encode() + b"\r\n\r\n", body]


def multipart(*parts: tuple[str, bytes], disposition: str = 'form-data; name="images"') -> list[bytes]:
    """Return a request with files; a file name of None makes a field."""
    lines = [
        f'--XX\r\nContent-Disposition: {disposition}; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts
    ]
    return request(b"".join(lines) + b"--XX--\r\n", "multipart/form-data; boundary=XX")


def _endless() -> Iterator[bytes]:
    yield request(head="Transfer-Encoding: chunked", length=False)[0]
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    for _ in range(ENDLESS):
        yield chunk


def _slow() -> Iterator[bytes]:
    yield request(b"x" * 1000)[0]
    for _ in range(int(TIMEOUT_S)):
        yield b"x"
        time.sleep(1)


def cases(body_bytes: int) -> list[Case]:
    """Return the requests.

    Args:
        body_bytes: The server's limit of a request.
    """
    jpeg, png = encoded("JPEG"), encoded("PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    zeros = zlib.compress(bytes(3 * 6000 * 8000 + 8000), 9)
    profile = _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000), 9))
    text = b"".join(_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(60_000_000), 9)) for _ in range(3))
    field = b'--XX\r\nContent-Disposition: form-data; name="images"\r\n\r\nhello\r\n--XX--\r\n'
    frames = [Image.new("P", (50, 50), color) for color in range(3)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    as_json = json.dumps({"image": b64encode(jpeg).decode()}).encode()
    ok, bad = (200,), (400,)
    return [
        Case("empty body", request(), bad),
        Case("text", request(b"hello"), bad),
        Case("truncated JPEG", request(jpeg[: len(jpeg) // 2]), bad),
        Case("truncated PNG", request(png[: len(png) // 2], "image/png"), bad),
        Case("PNG of 2^31 x 2^31 pixels", request(png_header(2**31 - 1, 2**31 - 1, b"x"), "image/png"), (413,)),
        Case("PNG of 200 megapixels", request(png_header(20_000, 10_000, b"x"), "image/png"), (413,)),
        Case("PNG, 48 megapixels in 140 kB (fine)", request(png_header(6000, 8000, zeros), "image/png"), ok),
        Case("PNG, 1 pixel and 200 MB color profile", request(png_header(1, 1, zeros[:99], profile)), bad),
        Case("PNG, 180 MB of compressed text", request(png_header(1, 1, zeros[:99], text)), bad),
        Case("SVG", request(SVG, "image/svg+xml"), bad),
        Case("HEIC", request(HEIC, "image/heic"), bad),
        Case("wrong content type", request(jpeg, "text/plain"), (415,)),
        Case("no content type", request(jpeg, None), (415,)),
        Case("base64 in JSON", request(as_json, "application/json"), (415,)),
        Case("multipart without a file", request(field, "multipart/form-data; boundary=XX"), bad),
        Case("multipart without a boundary", request(field, "multipart/form-data"), bad),
        Case("multipart with 1,000 files", multipart(*[(f"{i}.jpg", jpeg) for i in range(1000)]), (413,)),
        Case("multipart with 1,001 files", multipart(*[(f"{i}.jpg", b"x") for i in range(1001)]), bad),
        Case("NUL byte in a file name", multipart(("a\0b.jpg", b"hello")), bad),
        Case("one good and one bad file", multipart(("good.jpg", jpeg), ("bad.jpg", b"x")), bad),
        Case("header of 100 kB", request(jpeg, head=f"X-Long: {'a' * 100_000}"), (400, 431)),
        Case("body above the limit", request(bytes(body_bytes + 1)), (413,)),
        Case("chunked body without an end", _endless, (413,)),
        Case("body of one byte per second", _slow, (408,)),
        Case("threshold=abc", request(jpeg, path="/predict?threshold=abc"), (422,)),
        Case("threshold=nan", request(jpeg, path="/predict?threshold=nan"), (422,)),
        Case("threshold=2", request(jpeg, path="/predict?threshold=2"), (422,)),
        Case("unknown query parameter", request(jpeg, path="/predict?treshold=0.3"), (422,)),
        Case("PUT /predict", request(jpeg, method="PUT"), (405,)),
        Case("unknown path", request(jpeg, path="/predictions"), (404,)),
        Case("no HTTP", [b"\x16\x03\x01 hello\r\n\r\n"], bad),
        Case("animated GIF (first frame)", request(animation.getvalue(), "image/gif"), ok),
        Case("CMYK JPEG (fine)", request(encoded("JPEG", "CMYK")), ok),
        Case("16-bit PNG (fine)", request(encoded("PNG", "I;16"), "image/png"), ok),
        Case("1x1 image (fine)", request(encoded("PNG", size=(1, 1)), "image/png"), ok),
        Case("EXIF orientation (fine)", request(encoded("JPEG", exif=turned)), ok),
    ]


def answer(port: int, case: Case) -> tuple[int, str]:
    """Send a request; return the answer's status and body, 0 and the error if there is none."""
    parts = case.parts() if callable(case.parts) else case.parts
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    if callable(case.parts) and _readable(connection):
                        break
            except OSError:  # the server has closed the connection; its answer may be there
                pass
            while block := connection.recv(2**16):
                received += block
    except OSError as error:
        if not received:
            return 0, f"no answer: {error}"
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode(errors="replace")


def _readable(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(TIMEOUT_S)


def check(port: int, body_bytes: int) -> list[str]:
    """Send all requests, print a table of the answers, and return the names of those with another answer than is right.

    After each, a good request must be answered.
    """
    wrong, good = [], Case("good", request(encoded("JPEG")), (200,))
    print("| request | status | answer | s |\n|---|---|---|---|")
    for case in cases(body_bytes):
        start = time.monotonic()
        status, body = answer(port, case)
        seconds = time.monotonic() - start
        line = body
        if body.startswith("{"):
            found = json.loads(body)
            line = found.get("detail") or f"{found['images'][0]['width']}x{found['images'][0]['height']}"
        print(f"| {case.name} | {status} | {line[:110]} | {seconds:.1f} |", flush=True)
        if status not in case.expected or "\n" in line or answer(port, good)[0] != 200:
            wrong.append(case.name)
    return wrong
