"""Number of pixels that all requests together may hold decoded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """Lets requests wait, still compressed, until their images fit into memory beside those of others.

    Args:
        limit: Pixels; 3 bytes each.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.free = limit, limit
        self._released = asyncio.Event()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait for a number of pixels, at most `limit`, and return them at the end."""
        assert pixels <= self.limit
        while self.free < pixels:
            self._released.clear()
            await self._released.wait()
        self.free -= pixels
        try:
            yield
        finally:
            self.free += pixels
            self._released.set()
