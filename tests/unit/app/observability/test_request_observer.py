"""RequestObserverMiddleware around a bare ASGI application: what FastAPI never shows it, it passes on or tells
truly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from starlette.types import Receive, Scope, Send

from app.observability.metrics import Metrics
from app.observability.request_log import RequestLog
from app.observability.request_observer import RequestObserver, RequestObserverMiddleware
from models.interface.admission import Budget
from models.interface.errors import BodyMemoryFullError

if TYPE_CHECKING:
    from tests.unit.conftest import Exchange

pytestmark = pytest.mark.anyio

Observe = Callable[..., RequestObserverMiddleware]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def observe(metrics: Metrics) -> Observe:
    budget = Budget(1000, lambda _used: BodyMemoryFullError(1000))
    observer = RequestObserver(metrics, RequestLog(1.0), budget, frozenset({"/v1/classify"}))
    return lambda app: RequestObserverMiddleware(app, observer)


async def _receive() -> dict[str, Any]:
    pytest.fail("nobody reads here")


def _requests(metrics: Metrics) -> list[str]:
    lines = metrics.exposition("")[0].decode().splitlines()
    return [line for line in lines if line.startswith("gradless_requests_total{")]


async def test_half_an_answer_is_broken_off_and_not_followed_by_another(
    observe: Observe, metrics: Metrics, exchange: Exchange
) -> None:
    async def fail_midway(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError

    sent: list[dict[str, Any]] = []
    with pytest.raises(LookupError):
        await exchange(observe(fail_midway), _receive, sent=sent)

    assert [message["type"] for message in sent] == ["http.response.start"]
    assert _requests(metrics) == ['gradless_requests_total{code="200",method="POST",route="other"} 1.0']


async def test_an_application_that_fails_before_its_answer_is_answered_for(
    observe: Observe, metrics: Metrics, exchange: Exchange
) -> None:
    async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError("secret")

    start, body = await exchange(observe(fail), _receive)

    headers = dict(start["headers"])
    assert start["status"] == 500
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"] in body["body"]
    assert b"secret" not in body["body"]
    assert _requests(metrics) == ['gradless_requests_total{code="500",method="POST",route="other"} 1.0']


async def test_a_request_without_any_answer_is_counted_as_one_whose_caller_left(
    observe: Observe, metrics: Metrics, exchange: Exchange
) -> None:
    async def say_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        pass

    assert await exchange(observe(say_nothing), _receive) == []
    assert _requests(metrics) == ['gradless_requests_total{code="499",method="POST",route="other"} 1.0']


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_http_request_passes_untouched(observe: Observe, metrics: Metrics, kind: str) -> None:
    seen: list[Scope] = []

    async def note(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def send(_message: Any) -> None:
        pytest.fail("nothing to send")

    await observe(note)({"type": kind}, _receive, send)

    assert seen == [{"type": kind}]
    assert _requests(metrics) == []
