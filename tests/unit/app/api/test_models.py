"""POST and DELETE /v1/models/{name}: rights, calls of the runtime, and the problems of its errors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from models.interface import errors
from models.interface.errors import GradlessError
from models.interface.results import Loaded

if TYPE_CHECKING:
    from tests.unit.conftest import FakeRuntime

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

INFERENCE = "a-key-for-inference-0001"
DEBUG = "a-key-for-the-lens-0002"
ADMIN = "a-key-for-changes-0003"
KEYS = f"{INFERENCE}, inference+debug+metrics:{DEBUG}, admin:{ADMIN}"
ELSEWHERE = "192.0.2.7"

CHANGES = [("POST", "/v1/models/fake"), ("DELETE", "/v1/models/fake")]


class _Calls:
    """`load` and `unload` of a runtime, which record their calls and raise `error` if it is set."""

    def __init__(self, new_runtime: Callable[..., FakeRuntime], error: Exception | None = None) -> None:
        self.loads: list[tuple[str, str | None]] = []
        self.unloads: list[str] = []
        self._load = new_runtime().load
        self._error = error

    @property
    def runtime(self) -> dict[str, Any]:
        return {"load": self.load, "unload": self.unload}

    async def load(self, name: str, source: str | None) -> Loaded:
        self.loads.append((name, source))
        if self._error is not None:
            raise self._error
        return await self._load(name, source)

    async def unload(self, name: str) -> None:
        self.unloads.append(name)
        if self._error is not None:
            raise self._error


@pytest.fixture
def calls(new_runtime: Callable[..., FakeRuntime]) -> _Calls:
    return _Calls(new_runtime)


async def test_a_new_model_is_created_from_its_source_and_described(serve: Serve, calls: _Calls) -> None:
    async with serve(calls.runtime) as client:
        answer = await client.post("/v1/models/flowers", json={"source": "resnet18:random"})

    assert calls.loads == [("flowers", "resnet18:random")]
    assert answer.status_code == 201
    assert (answer.json()["name"], answer.json()["version"]) == ("flowers", 1)
    assert "load_seconds" not in answer.json()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"source": null}'])
async def test_without_a_source_a_model_is_reloaded_from_its_current_source(
    serve: Serve, calls: _Calls, body: bytes
) -> None:
    async with serve(calls.runtime) as client:
        answer = await client.post("/v1/models/fake", content=body)

    assert calls.loads == [("fake", None)]
    assert answer.status_code == 200


async def test_a_model_is_unloaded_by_its_name(serve: Serve, calls: _Calls) -> None:
    async with serve(calls.runtime) as client:
        answer = await client.delete("/v1/models/fake")

    assert calls.unloads == ["fake"]
    assert (answer.status_code, answer.content) == (204, b"")
    # Clients parse a body of that type.
    assert "content-type" not in answer.headers


@pytest.mark.parametrize("name", ["timm/resnet18", "resnet50:random", "a.b_c-d/e", "x" * 128])
async def test_model_names_may_contain_slashes(serve: Serve, calls: _Calls, name: str) -> None:
    async with serve({**calls.runtime, "names": ("fake", name)}) as client:
        loaded = await client.post(f"/v1/models/{name}")
        described = await client.get(f"/v1/models/{name}")
        unloaded = await client.delete(f"/v1/models/{name}")

    assert (calls.loads, calls.unloads) == ([(name, None)], [name])
    assert (loaded.json()["name"], described.json()["name"], unloaded.status_code) == (name, name, 204)


@pytest.mark.parametrize("name", ["a b", "a//b", "a/", ".hidden", "a/.b", "b%C3%A4r", "x" * 129, "(not served)"])
async def test_an_invalid_model_name_is_refused(serve: Serve, calls: _Calls, name: str) -> None:
    async with serve(calls.runtime) as client:
        answers = [await client.post(f"/v1/models/{name}"), await client.delete(f"/v1/models/{name}")]

    assert {answer.status_code for answer in answers} == {422}
    assert (calls.loads, calls.unloads) == ([], [])


@pytest.mark.parametrize("name", ["a:predict", "a:explain"])
async def test_the_path_of_an_operation_loads_and_unloads_nothing(serve: Serve, calls: _Calls, name: str) -> None:
    async with serve(calls.runtime) as client:
        answers = [await client.post(f"/v1/models/{name}"), await client.delete(f"/v1/models/{name}")]

    assert {answer.status_code for answer in answers} <= {404, 405}
    assert (calls.loads, calls.unloads) == ([], [])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"resnet18", 422),
        (b'{"source": 3}', 422),
        (b'{"source": ""}', 422),
        (b'{"sauce": "x"}', 422),
        (b"[]", 422),
        (b" " * 70_000, 413),
    ],
    ids=["no JSON", "a number", "nothing", "another key", "a list", "too much"],
)
async def test_a_body_without_a_valid_source_is_refused(serve: Serve, calls: _Calls, body: bytes, status: int) -> None:
    async with serve(calls.runtime) as client:
        answer = await client.post("/v1/models/fake", content=body)

    assert answer.status_code == status
    assert calls.loads == []


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (errors.UnknownModelError("fake", ["a"]), 404, "unknown-model"),
        (errors.ModelChangingError("a"), 409, "model-changing"),
        (errors.TooManyModelsError(2), 409, "too-many-models"),
        (errors.LastModelError("fake"), 409, "last-model"),
        (errors.ModelNotLoadedError("fake", "its file is gone"), 422, "model-not-loaded"),
        (errors.DrainingError(), 503, "draining"),
        (errors.NoRoomError("fake", "too large."), 503, "no-room"),
        (errors.LoadTimeoutError("fake", "it had not loaded after 3 s."), 503, "load-timeout"),
    ],
)
@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_an_error_of_the_runtime_is_answered_with_its_problem(
    serve: Serve,
    new_runtime: Callable[..., FakeRuntime],
    error: GradlessError,
    status: int,
    slug: str,
    method: str,
    path: str,
) -> None:
    async with serve(_Calls(new_runtime, error).runtime) as client:
        answer = await client.request(method, path)

    assert answer.status_code == status
    assert answer.json()["type"] == f"urn:gradless:problem:{slug}"
    assert answer.json()["detail"] == str(error)


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize("key", [None, INFERENCE, DEBUG])
async def test_with_keys_only_the_right_admin_can_change_models(
    serve: Serve, calls: _Calls, method: str, path: str, key: str | None
) -> None:
    headers = {} if key is None else {"X-API-Key": key}
    async with serve(calls.runtime, api_keys=KEYS) as client:
        refused = await client.request(method, path, headers=headers)
        read = await client.get("/v1/models", headers={"X-API-Key": ADMIN})
    async with serve(calls.runtime, client_address=ELSEWHERE, api_keys=KEYS) as client:
        done = await client.request(method, path, headers={"X-API-Key": ADMIN})

    assert refused.status_code == (401 if key is None else 403)
    assert read.status_code == 403
    assert done.status_code in {200, 204}
    assert len(calls.loads) + len(calls.unloads) == 1


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    ("client_address", "headers"),
    [
        (ELSEWHERE, {}),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", {"Origin": "https://example.com"}),
        ("127.0.0.1", {"Origin": "null"}),
    ],
    ids=["remote", "through a proxy", "cross-origin page", "page with the origin null"],
)
async def test_without_keys_only_local_clients_can_change_models_and_no_web_page(
    serve: Serve, calls: _Calls, method: str, path: str, client_address: str, headers: dict[str, str]
) -> None:
    async with serve(calls.runtime, client_address=client_address) as client:
        refused = await client.request(method, path, headers=headers)
    async with serve(calls.runtime) as client:
        done = await client.request(method, path)

    assert (refused.status_code, refused.json()["type"]) == (403, "urn:gradless:problem:forbidden")
    assert done.status_code in {200, 204}
    assert len(calls.loads) + len(calls.unloads) == 1
