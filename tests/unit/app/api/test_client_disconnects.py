"""A client that disconnects cancels the work for its request. The tests drive the application message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from models.interface.results import Answer

if TYPE_CHECKING:
    from tests.unit.conftest import Exchange

pytestmark = pytest.mark.anyio

_PATIENCE_S = 30
_BODY = {"type": "http.request", "body": b"image", "more_body": False}


class _Client:
    """Sends its messages, waits for `disconnects`, and disconnects."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = list(messages)
        self.disconnects = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self.disconnects.wait()
        return {"type": "http.disconnect"}


class _Work:
    """A `predict` or `compare` that never ends by itself, and records whether it was cancelled."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = False

    async def __call__(self, *_arguments: object, **_options: object) -> Any:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def _scraped(app: FastAPI) -> str:
    body, _ = app.state.parts.metrics.exposition("")
    return str(body.decode())


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/debug/grad-modes"])
async def test_a_client_that_disconnects_cancels_its_work(
    application: Callable[..., FastAPI], exchange: Exchange, path: str
) -> None:
    work, client = _Work(), _Client(_BODY)
    app = application({"predict": work, "compare": work})
    async with app.router.lifespan_context(app), asyncio.timeout(_PATIENCE_S):
        request = asyncio.create_task(exchange(app, client.receive, path))
        await work.began.wait()
        assert not request.done()
        client.disconnects.set()
        await request

    assert work.cancelled
    assert f'gradless_requests_total{{code="499",contract="native",method="POST",route="{path}"}} 1.0' in _scraped(app)


async def test_a_client_that_disconnects_while_sending_its_body_starts_no_work(
    application: Callable[..., FastAPI], exchange: Exchange
) -> None:
    work, client = _Work(), _Client({**_BODY, "more_body": True})
    app = application({"predict": work})
    client.disconnects.set()
    async with app.router.lifespan_context(app):
        await exchange(app, client.receive)

    assert not work.began.is_set()
    assert 'gradless_requests_total{code="499",contract="native",method="POST",route="/v1/classify"} 1.0' in _scraped(
        app
    )


async def test_a_request_that_is_cancelled_from_outside_cancels_its_work_and_is_counted(
    application: Callable[..., FastAPI], exchange: Exchange
) -> None:
    work, client = _Work(), _Client(_BODY)
    app = application({"predict": work})
    async with app.router.lifespan_context(app), asyncio.timeout(_PATIENCE_S):
        request = asyncio.create_task(exchange(app, client.receive))
        await work.began.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    assert work.cancelled
    assert 'gradless_requests_total{code="499",contract="native",method="POST",route="/v1/classify"} 1.0' in _scraped(
        app
    )


async def test_a_connected_client_gets_its_answer_and_no_task_outlives_the_request(
    application: Callable[..., FastAPI], exchange: Exchange, answer: Callable[..., Answer]
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer()

    app = application({"predict": predict})
    async with app.router.lifespan_context(app):
        before = asyncio.all_tasks()
        sent = await exchange(app, _Client(_BODY).receive)
        after = asyncio.all_tasks()

    assert sent[0]["status"] == 200
    assert after == before


async def test_a_client_that_disconnects_does_not_affect_others(
    application: Callable[..., FastAPI], exchange: Exchange
) -> None:
    leaving, staying = _Work(), _Work()
    works = iter([leaving, staying])

    async def predict(*arguments: object, **options: object) -> Any:
        return await next(works)(*arguments, **options)

    first, second = _Client(_BODY), _Client(_BODY)
    app = application({"predict": predict})
    async with app.router.lifespan_context(app), asyncio.timeout(_PATIENCE_S):
        gone = asyncio.create_task(exchange(app, first.receive))
        await leaving.began.wait()
        kept = asyncio.create_task(exchange(app, second.receive))
        await staying.began.wait()
        first.disconnects.set()
        await gone

        assert leaving.cancelled
        assert not staying.cancelled
        assert not kept.done()
        second.disconnects.set()
        await kept
