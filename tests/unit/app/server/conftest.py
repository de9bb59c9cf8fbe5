"""A server with the limits of BoundedConnection on the event loop of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.http.problems import Row
from app.server.connection import BoundedConnection

Listen = Callable[..., AbstractAsyncContextManager[tuple[ServerState, Any]]]


def _ignore(_row: Row, _seconds: float | None) -> None: ...


@pytest.fixture(scope="session")
def listen() -> Listen:
    """Serve an ASGI application on a local port; return uvicorn's state and the address."""

    @asynccontextmanager
    async def start(
        app: Any,
        head_timeout_s: float = 10,
        on_refusal: Callable[[Row, float | None], None] = _ignore,
        connection: type[BoundedConnection] = BoundedConnection,
        shedding: Any = None,
        **options: Any,
    ) -> AsyncIterator[tuple[ServerState, Any]]:
        config = uvicorn.Config(app, log_config=None, lifespan="off", **options)
        config.load()
        state = ServerState()
        protocol = connection.with_bounds(head_timeout_s, on_refusal, shedding)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
        async with server:
            yield state, server.sockets[0].getsockname()

    return start
