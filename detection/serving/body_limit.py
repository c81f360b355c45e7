"""Middleware that ends requests whose body is too large, while they arrive, and counts the answers."""

from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAINED = 8
"""Bytes of a refused request that are read before the answer, as a multiple of the limit."""


class _TooLargeError(Exception):
    pass


class BodyLimit:
    """Answers 413 as soon as a request announces or sends more than `limit` bytes.

    Args:
        app: The application.
        limit: Bytes.
        on_status: Called with the status code of each answer of `/predict`.
    """

    def __init__(self, app: ASGIApp, limit: int, on_status: Callable[[int], None]) -> None:
        self.app, self.limit, self.on_status = app, limit, on_status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received, started = 0, False

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and scope["path"] == "/predict":
                self.on_status(message["status"])
            await send(message)

        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        try:
            if length.isdigit() and int(length) > self.limit:
                raise _TooLargeError
            await self.app(scope, limited, watched)
        except _TooLargeError:
            while received <= DRAINED * self.limit:  # a client reads no answer while it sends
                message = await receive()
                received += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            if not started:
                detail = f"the request has more than the {self.limit:,} bytes that are accepted"
                await JSONResponse({"detail": detail}, 413)(scope, receive, watched)
