"""Limits of a request, batches and the memory of decoded images, without a server."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detection.predictor import ImageDetections
from detection.serving.batcher import Batcher, QueueFullError
from detection.serving.limits import Limits
from detection.serving.model_source import ServedModel
from detection.serving.pixel_budget import PixelBudget
from detection.serving.request_limits import DRAINED, RequestLimits

Answer = tuple[int, dict[bytes, bytes], Any]
NextPart = Callable[[int], Message | None]


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Application that answers with the length of the body."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def ask(app: ASGIApp, next_part: NextPart, headers: dict[str, str] | None = None) -> Answer:
    """Status, headers and content of an answer; a part of None never arrives."""
    number, sent = 0, []

    async def receive() -> Message:
        nonlocal number
        part = next_part(number)
        number += 1
        if part is None:
            await asyncio.Event().wait()
        assert part is not None
        return part

    async def send(message: Message) -> None:
        sent.append(message)

    lines = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": lines}
    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    parsed = json.loads(content)["detail"] if content[:1] == b"{" else content.decode()
    return sent[0]["status"], dict(sent[0]["headers"]), parsed


def part(size: int, *, more: bool) -> Message:
    return {"type": "http.request", "body": bytes(size), "more_body": more}


@pytest.mark.parametrize(
    ("parts", "headers", "expected", "words"),
    [
        ([part(60, more=True), part(40, more=False)], {}, 200, "100"),
        ([part(60, more=True), part(41, more=False)], {}, 413, "more than the 100 bytes"),
        ([part(101, more=False)], {"content-length": "101"}, 413, "more than the 100 bytes"),
        ([part(60, more=True), None], {}, 408, "60 bytes of the request arrived within 0.2 s"),
        ([part(9, more=False)], {"x-long": "a" * 20_000}, 431, "headers"),
    ],
)
def test_requests_are_refused(parts: list[Message | None], headers: dict[str, str], expected: int, words: str) -> None:
    statuses: list[int] = []
    app = RequestLimits(echo_length, Limits(body_bytes=100, timeout_s=0.2), statuses.append)
    status, _, text = asyncio.run(ask(app, lambda number: parts[number], headers))
    assert (status, statuses) == (expected, [expected])
    assert words in text


def test_a_body_without_an_end_is_read_to_a_multiple_of_the_limit_and_the_connection_closed() -> None:
    read = 0

    def next_part(number: int) -> Message:
        nonlocal read
        read = number + 1
        return part(50, more=True)

    app = RequestLimits(echo_length, Limits(body_bytes=100), lambda status: None)
    status, headers, _ = asyncio.run(ask(app, next_part))
    assert status == 413
    assert headers[b"connection"] == b"close"
    assert 100 * DRAINED < 50 * read < 100 * DRAINED + 100


def test_requests_beyond_a_number_at_a_time_get_503() -> None:
    async def run() -> Answer:
        app = RequestLimits(echo_length, Limits(waiting=2, timeout_s=30), lambda status: None)
        pending = [asyncio.create_task(ask(app, lambda number: None)) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await ask(app, lambda number: part(1, more=False))
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        assert (await ask(app, lambda number: part(1, more=False)))[0] == 200
        return refused

    status, headers, text = asyncio.run(run())
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert "2 requests" in text


@dataclass
class CountingPredictor:
    """Predictor without a detector."""

    batches: list[int]

    def predict(self, images: list[torch.Tensor], **_: Any) -> list[ImageDetections]:
        self.batches.append(len(images))
        none = np.zeros(0, np.float32)
        return [ImageDetections(none.reshape(0, 4), none, none.astype(np.int64), (), (8, 8)) for _ in images]


def run_batches(work: Callable[[Batcher], Any], **options: Any) -> list[int]:
    """Sizes of the batches that a function's images came to; the wait for others is without an end."""

    async def run() -> list[int]:
        predictor = CountingPredictor([])
        batcher = Batcher(ServedModel(predictor, "1"), 8, options.pop("delay_s", 1e6), 16)  # type: ignore[arg-type]
        batcher.start()
        try:
            async with asyncio.timeout(30):
                await work(batcher)
        finally:
            await batcher.stop()
        return predictor.batches

    return asyncio.run(run())


IMAGES = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 20


def test_an_image_does_not_wait_if_no_other_is_being_decoded() -> None:
    assert run_batches(lambda batcher: batcher.detect(IMAGES[:1])) == [1]


def test_an_image_waits_for_those_that_are_being_decoded() -> None:
    async def two_requests(batcher: Batcher) -> None:
        with batcher.announced():
            first = asyncio.create_task(batcher.detect(IMAGES[:1]))
            await asyncio.sleep(0.05)
            assert not first.done()
        await batcher.detect(IMAGES[:2])
        await first

    assert run_batches(two_requests) == [3]


def test_an_image_waits_no_longer_than_the_delay() -> None:
    async def one_request(batcher: Batcher) -> None:
        with batcher.announced():
            await batcher.detect(IMAGES[:1])

    assert run_batches(one_request, delay_s=0.01) == [1]


def test_batches_and_queue_are_limited() -> None:
    async def many(batcher: Batcher) -> None:
        with pytest.raises(QueueFullError):
            await batcher.detect(IMAGES[:17])
        await batcher.detect(IMAGES[:16])

    assert run_batches(many) == [8, 8]


def test_decoded_images_wait_for_memory() -> None:
    async def run() -> None:
        budget, order = PixelBudget(100), []

        async def hold(name: str, pixels: int, end: asyncio.Event) -> None:
            async with budget.hold(pixels):
                order.append(name)
                await end.wait()

        first, second = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(hold("first", 60, first)), asyncio.create_task(hold("second", 60, second))]
        await asyncio.sleep(0.01)
        assert order == ["first"]
        first.set()
        await asyncio.wait_for(tasks[0], 10)
        await asyncio.sleep(0.01)
        assert order == ["first", "second"]
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.free == 100

    asyncio.run(run())


def test_answers_of_a_server_that_stops_close_the_connection() -> None:
    app = RequestLimits(echo_length, Limits(), lambda status: None, lambda: True)
    status, headers, text = asyncio.run(ask(app, lambda number: part(5, more=False)))
    assert (status, headers[b"connection"], text) == (200, b"close", "5")
