"""A stop of the gRPC server takes the calls that have arrived; grpcio drops those that it has not passed on.

Calls leave no reference cycles.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable

import pytest
from fastapi import FastAPI

grpc = pytest.importorskip("grpc")

from app.api.contracts import grpc_server  # noqa: E402 - needs grpc
from app.api.contracts.grpc_messages import HEALTH, INFERENCE, methods_of  # noqa: E402

pytestmark = pytest.mark.anyio

_LIVE = next(method for method in methods_of(INFERENCE) if method.name == "ServerLive")


async def test_a_call_that_arrives_as_the_stop_begins_is_answered(
    application: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_QUIET_S", "_TAKE_S"):
        monkeypatch.setattr(grpc_server, name, 2.0)
    caplog.set_level(logging.INFO)
    app = application(grpc_port=0)
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    address = next(record.address for record in caplog.records if hasattr(record, "address"))
    async with grpc.aio.insecure_channel(address) as channel:
        live = channel.unary_unary(_LIVE.path, _LIVE.request.SerializeToString, _LIVE.response.FromString)
        assert (await live(_LIVE.request())).live
        stopped = asyncio.create_task(lifespan.__aexit__(None, None, None))
        await asyncio.sleep(0.2)
        await live(_LIVE.request())
    await stopped


# Answered, and refused: without a key, for an unknown service (its name is the first field), and a broken message.
@pytest.mark.parametrize(
    ("name", "message"), [("ServerLive", b""), ("ModelReady", b""), ("Check", b"\x0a\x01x"), ("Check", b"\xff")]
)
async def test_calls_leave_no_reference_cycles(
    application: Callable[..., FastAPI], caplog: pytest.LogCaptureFixture, name: str, message: bytes
) -> None:
    caplog.set_level(logging.INFO)
    app = application(grpc_port=0, api_keys="a-key-with-all-rights-1")
    method = next(each for each in (*methods_of(INFERENCE), *methods_of(HEALTH)) if each.name == name)
    async with app.router.lifespan_context(app):
        address = next(record.address for record in caplog.records if hasattr(record, "address"))
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(method.path)
            gc.collect()
            gc.disable()
            try:
                for _ in range(20):
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await call(message)
                left = [each for each in gc.get_objects() if type(each).__name__ == "_ServicerContext"]
            finally:
                gc.enable()
    # That of the last call may still be in use.
    assert len(left) <= 1
