"""RequestObserverMiddleware around a bare ASGI application: cases that FastAPI does not produce."""

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
    pytest.fail("the application must not read the body")


def _requests(metrics: Metrics) -> list[str]:
    lines = metrics.exposition("")[0].decode().splitlines()
    return [line for line in lines if line.startswith("gradless_requests_total{")]


async def test_a_failure_during_a_response_breaks_it_off_without_a_second_response(
    observe: Observe, metrics: Metrics, exchange: Exchange
) -> None:
    async def fail_midway(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError

    sent: list[dict[str, Any]] = []
    with pytest.raises(LookupError):
        await exchange(observe(fail_midway), _receive, sent=sent)

    assert [message["type"] for message in sent] == ["http.response.start"]
    assert _requests(metrics) == [
        'gradless_requests_total{code="200",contract="native",method="POST",route="other"} 1.0'
    ]


async def test_a_failure_before_the_response_is_answered_with_a_500_problem(
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
    assert _requests(metrics) == [
        'gradless_requests_total{code="500",contract="native",method="POST",route="other"} 1.0'
    ]


async def test_a_request_without_a_response_counts_as_disconnected(
    observe: Observe, metrics: Metrics, exchange: Exchange
) -> None:
    async def send_nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        pass

    assert await exchange(observe(send_nothing), _receive) == []
    assert _requests(metrics) == [
        'gradless_requests_total{code="499",contract="native",method="POST",route="other"} 1.0'
    ]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_scopes_than_http_are_passed_through(observe: Observe, metrics: Metrics, kind: str) -> None:
    scopes: list[Scope] = []

    async def keep(scope: Scope, _receive: Receive, _send: Send) -> None:
        scopes.append(scope)

    async def send(_message: Any) -> None:
        pytest.fail("nothing to send")

    await observe(keep)({"type": kind}, _receive, send)

    assert scopes == [{"type": kind}]
    assert _requests(metrics) == []
