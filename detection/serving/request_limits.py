"""Middleware that refuses requests whose body is too large or too slow, and requests beyond a number at a time."""

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detection.serving.limits import Limits

PREDICT = "/predict"
DRAINED = 8
"""Bytes of a refused request that are read before the answer, as a multiple of the limit."""
MAX_HEADER_BYTES = 16_384
"""Size of all names and values of a request's headers."""
RETRY_S = 1
"""Seconds after which a client may retry when too many requests or images wait."""


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def _too_large(limits: Limits) -> _RefusedError:
    return _RefusedError(413, f"the request has more than the {limits.body_bytes:,} bytes that are accepted")


class _Body:
    """`receive` of a request whose body must end within a number of bytes and of seconds."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._deadline = asyncio.get_running_loop().time() + limits.timeout_s
        self.received, self.complete = 0, False

    async def __call__(self) -> Message:
        if self.complete:  # waits for the client to disconnect
            return await self._receive()
        message = await self._next()
        if self.received > self._limits.body_bytes:
            raise _too_large(self._limits)
        return message

    async def drain(self) -> None:
        """Read on, since a client reads no answer while it sends; up to a number of bytes, and to the deadline."""
        while not self.complete and self.received <= DRAINED * self._limits.body_bytes:
            try:
                await self._next()
            except _RefusedError:
                return

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"{self.received:,} bytes of the request arrived within {self._limits.timeout_s:g} s"
            raise _RefusedError(408, f"{detail}, and not its end") from None
        self.received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message


class RequestLimits:
    """Answers 413 or 431 to too large, 408 to too slow and 503 to too many requests at a time, each with one line.

    Args:
        app: The application.
        limits: Limits.
        on_status: Called with the status code of each answer of `/predict`.
        is_stopping: Tells whether the server ends after the requests that it has; then answers announce that their
            connection is closed, so that clients send the next request elsewhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        on_status: Callable[[int], None],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.limits, self.on_status, self.is_stopping, self.active = app, limits, on_status, is_stopping, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and self.is_stopping():
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            if message["type"] == "http.response.start" and scope["path"] == PREDICT:
                self.on_status(message["status"])
            await send(message)

        body = _Body(receive, self.limits)
        counted = scope["path"] == PREDICT
        self.active += counted
        try:
            self._check(scope)
            await self.app(scope, body, watched)
        except _RefusedError as error:
            if error.status == 413:
                await body.drain()
            headers = {"Connection": "close"} if error.status != 503 else {"Retry-After": str(RETRY_S)}
            if not started:
                await JSONResponse({"detail": error.detail}, error.status, headers)(scope, receive, watched)
        except ClientDisconnect:  # nobody reads an answer
            return
        finally:
            self.active -= counted

    def _check(self, scope: Scope) -> None:
        """Refuse what can be refused before the body arrives."""
        if (size := sum(len(name) + len(value) for name, value in scope["headers"])) > MAX_HEADER_BYTES:
            raise _RefusedError(431, f"the headers have {size:,} bytes, and {MAX_HEADER_BYTES:,} are accepted")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise _too_large(self.limits)
        if scope["path"] == PREDICT and self.active > self.limits.waiting:
            raise _RefusedError(503, f"{self.limits.waiting} requests are being answered; retry later")
