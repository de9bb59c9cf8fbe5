"""API keys and their rights; keys never appear in logs, responses or settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx2
import pytest

from app.http.api_keys import Keys, parse_keys, read_keys
from app.settings import Settings, SettingsError, load_settings

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

KEY = "a-key-for-inference-0001"
ADMIN = "a-key-for-everything-0002"
SCRAPER = "a-key-for-metrics-0003"
CHANGER = "a-key-for-changes-0004"
KEYS = f"{KEY}, inference+debug+metrics:{ADMIN}, metrics:{SCRAPER}"

INFERENCE = [("POST", "/v1/classify"), ("POST", "/v1/features"), ("GET", "/v1/models"), ("GET", "/v1/models/fake")]
METRICS = [("GET", "/metrics")]
DEBUG = [("POST", "/debug/grad-modes?batch_size=1&iterations=1")]
OPEN = [("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/"), ("GET", "/openapi.json")]

ELSEWHERE = "192.0.2.7"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def send(client: httpx2.AsyncClient, method: str, path: str, headers: dict[str, str]) -> httpx2.Response:
    return await client.request(method, path, content=b"image" if path.startswith("/v1/") else b"", headers=headers)


@pytest.mark.parametrize(("method", "path"), [*INFERENCE, *METRICS, *DEBUG])
async def test_a_request_without_a_key_is_refused_with_a_challenge(serve: Serve, method: str, path: str) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        answer = await send(client, method, path, {})

    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:gradless:problem:unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [bearer("some-other-key-of-length"), {"X-API-Key": KEY[:-1]}, bearer("")])
async def test_an_unknown_key_is_refused(serve: Serve, headers: dict[str, str]) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        answer = await send(client, "POST", "/v1/classify", headers)

    assert answer.status_code == 401
    assert "invalid_token" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("key", "allowed", "forbidden"),
    [(KEY, INFERENCE, [*METRICS, *DEBUG]), (SCRAPER, METRICS, [*INFERENCE, *DEBUG]), (ADMIN, [*INFERENCE, *DEBUG], [])],
    ids=["inference", "metrics", "all"],
)
async def test_a_key_allows_only_what_its_rights_allow(
    serve: Serve, key: str, allowed: list[tuple[str, str]], forbidden: list[tuple[str, str]]
) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        opened = [await send(client, *request, bearer(key)) for request in allowed]
        closed = [await send(client, *request, bearer(key)) for request in forbidden]

    assert {answer.status_code for answer in opened} == {200}
    assert {(answer.status_code, answer.json()["type"]) for answer in closed} <= {
        (403, "urn:gradless:problem:forbidden")
    }
    assert len(closed) == len(forbidden)


async def test_a_key_may_be_sent_in_either_header(serve: Serve) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        answers = [
            await send(client, "GET", "/v1/models", headers)
            for headers in (bearer(KEY), {"Authorization": f"bearer  {KEY}"}, {"X-API-Key": KEY})
        ]

    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(("method", "path"), OPEN)
async def test_probes_page_and_documentation_need_no_key(serve: Serve, method: str, path: str) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        assert (await send(client, method, path, {})).status_code == 200


@pytest.mark.parametrize("keys", [None, KEYS], ids=["no keys", "keys"])
@pytest.mark.parametrize("client_address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_the_lens_answers_local_clients_without_a_key(
    serve: Serve, client_address: str, keys: str | None
) -> None:
    async with serve({}, client_address=client_address, api_keys=keys) as client:
        assert (await send(client, *DEBUG[0], {})).status_code == 200


@pytest.mark.parametrize(
    ("client_address", "headers"),
    [
        (ELSEWHERE, {}),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}),
        ("no address", {}),
    ],
)
async def test_the_lens_refuses_remote_clients_even_through_a_local_proxy(
    serve: Serve, client_address: str, headers: dict[str, str]
) -> None:
    async with serve({}, client_address=client_address) as client:
        lens = await send(client, *DEBUG[0], headers)
        inference = await send(client, "POST", "/v1/classify", headers)

    assert (lens.status_code, lens.json()["type"]) == (403, "urn:gradless:problem:forbidden")
    # Without keys, everything else is open.
    assert inference.status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:8000", 200),
        ("https://example.com", 403),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("null", 403),
        ("", 403),
    ],
    ids=["no origin", "same origin", "other host", "other port", "default port", "null", "empty"],
)
async def test_without_keys_a_local_page_of_another_origin_cannot_run_a_comparison(
    serve: Serve, origin: str | None, status: int
) -> None:
    headers = {"Host": "localhost:8000"} | ({} if origin is None else {"Origin": origin})
    async with serve() as client:
        assert (await send(client, *DEBUG[0], headers)).status_code == status


PRIVILEGED = [*DEBUG, ("POST", "/v1/models/fake"), ("DELETE", "/v1/models/fake")]


@pytest.mark.parametrize(("method", "path"), PRIVILEGED)
@pytest.mark.parametrize("listening_on", ["0.0.0.0", "192.0.2.7"])  # noqa: S104 - nothing listens there
async def test_dns_rebinding_gives_a_page_no_local_rights(
    serve: Serve, method: str, path: str, listening_on: str
) -> None:
    rebound = {"Host": "evil.example:8000"}
    page = rebound | {"Origin": "http://evil.example:8000"}
    async with serve({}, host=listening_on) as client:
        answers = [(await client.request(method, path, headers=headers)) for headers in (page, rebound)]
    async with serve({}, host=listening_on, allowed_hosts=("*",)) as client:
        answers.append(await client.request(method, path, headers=page))
    async with serve({}, host=listening_on, api_keys=f"debug+admin:{CHANGER}") as client:
        answers.append(await client.request(method, path, headers=page))
        with_key = await client.request(method, path, headers=page | bearer(CHANGER))

    assert [answer.status_code for answer in answers] == [403, 403, 403, 401]
    assert with_key.status_code < 300


@pytest.mark.parametrize(("method", "path"), PRIVILEGED)
async def test_on_other_addresses_local_clients_need_a_trusted_host(serve: Serve, method: str, path: str) -> None:
    async with serve({}, host="0.0.0.0") as client:  # noqa: S104 - nothing listens there
        here = [
            await client.request(method, path, headers={"Host": host})
            for host in ("localhost:8000", "127.0.0.1", "[::1]:80")
        ]
    async with serve({}, host="0.0.0.0", allowed_hosts=("lens.example",)) as client:  # noqa: S104 - as above
        here.append(await client.request(method, path, headers={"Host": "lens.example"}))

    assert {answer.status_code for answer in here} <= {200, 201, 204}


async def test_on_every_address_the_lens_answers_the_local_page_of_this_service(serve: Serve) -> None:
    page = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    async with serve({}, host="0.0.0.0") as client:  # noqa: S104 - nothing listens there
        assert (await send(client, *DEBUG[0], page)).status_code == 200


async def test_a_local_page_of_another_origin_runs_a_comparison_with_a_key(serve: Serve) -> None:
    page = {"Origin": "https://example.com"}
    async with serve(api_keys=KEYS) as client:
        statuses = [(await send(client, *DEBUG[0], page | key)).status_code for key in ({}, bearer(KEY), bearer(ADMIN))]

    assert statuses == [401, 403, 200]


async def test_the_openapi_document_describes_how_to_send_a_key(serve: Serve) -> None:
    async with serve(api_keys=KEY) as client:
        document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme", scheme.get("name"))) for scheme in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    with_key = {
        (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation.get("security") == [{name: []} for name in schemes]
    }
    assert with_key >= {("post", "/v1/classify"), ("post", "/v1/features"), ("get", "/metrics"), ("get", "/v1/models")}
    assert not any(path in {"/healthz", "/readyz"} for _, path in with_key)


async def test_without_keys_the_openapi_document_mentions_none(serve: Serve) -> None:
    async with serve() as client:
        document = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert "security" not in document["paths"]["/v1/classify"]["post"]


async def test_refusals_without_a_key_are_counted(serve: Serve) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        await send(client, "POST", "/v1/classify", {})
        await send(client, "GET", "/metrics", bearer(KEY))
        exposition = (await send(client, "GET", "/metrics", bearer(SCRAPER))).text

    assert 'gradless_rejected_total{reason="auth"} 2.0' in exposition


async def test_a_request_without_a_key_learns_nothing_of_its_parameters(serve: Serve) -> None:
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        refused = await send(client, "POST", "/v1/classify?top_k=0", {})
    assert refused.status_code == 401


async def test_keys_never_appear_in_logs_responses_or_settings(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve({}, client_address=ELSEWHERE, api_keys=KEYS) as client:
        answers = [await send(client, *DEBUG[0], bearer(key)) for key in (KEY, "wrong-key-of-some-length")]
    published = caplog.text + str([vars(record) for record in caplog.records])
    published += "".join(answer.text + str(answer.headers) for answer in answers)
    published += repr(Settings(api_keys=KEYS)) + repr(parse_keys(KEYS)) + str(vars(parse_keys(KEYS)))

    assert not [key for key in (KEY, ADMIN, SCRAPER, "wrong-key-of-some-length") if key in published]


def test_a_file_of_keys_has_one_key_per_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys\n{KEY}   # the shop\n\ninference+debug:{ADMIN}\n")

    keys = read_keys(None, file)

    assert keys.rights_of(KEY) == {"inference"}
    assert keys.rights_of(ADMIN) == {"inference", "debug"}
    assert keys.rights_of(SCRAPER) is None


def test_without_settings_there_are_no_keys() -> None:
    assert not read_keys(None, None)
    assert not Keys({})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("short", "entry 1: a key has 16 to 512 letters, digits or ._~+/=-"),
        (f"{KEY},with a space in it!", "entry 2: a key has 16 to 512"),
        (f"{KEY},{KEY}", "entry 2: duplicate key"),
        (f"root:{KEY}", "entry 1: rights are inference, debug, metrics, admin, joined by +"),
        (f":{KEY}", "entry 1: rights are"),
        (" , ", "it contains no key"),
        ("", "it contains no key"),
    ],
)
def test_an_invalid_list_of_keys_is_refused_by_entry_number_and_without_its_text(
    monkeypatch: pytest.MonkeyPatch, stated: str, message: str
) -> None:
    monkeypatch.setenv("GRADLESS_API_KEYS", stated)
    with pytest.raises(SettingsError) as refused:
        load_settings()

    line = str(refused.value)
    assert line.startswith("GRADLESS_API_KEYS: ")
    assert message in line
    assert not any(part and part in line for part in (KEY, "short", "space in it"))


def test_an_unreadable_file_of_keys_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADLESS_API_KEYS_FILE", str(tmp_path / "nothing"))
    with pytest.raises(SettingsError, match=r"GRADLESS_API_KEYS_FILE: .*nothing cannot be read: No such file"):
        load_settings()

    monkeypatch.setenv("GRADLESS_API_KEYS", KEY)
    with pytest.raises(SettingsError, match="are both set; set one of them"):
        load_settings()


def test_a_file_of_keys_in_a_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> bool:
        raise PermissionError

    monkeypatch.setenv("GRADLESS_API_KEYS_FILE", "/of-another-user/keys")
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(
        SettingsError, match="GRADLESS_API_KEYS_FILE: /of-another-user/keys is not readable by this user"
    ):
        load_settings()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"\n"), "is larger than 1048576 bytes"),
        (os.mkfifo, "is a pipe or a device, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device, not a file"),
        (Path.mkdir, "cannot be read: Is a directory"),
    ],
    ids=["too large", "a pipe", "a device", "a folder"],
)
def test_an_endless_file_of_keys_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "keys")
    monkeypatch.setenv("GRADLESS_API_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(SettingsError, match=f"GRADLESS_API_KEYS_FILE: .*keys {message}"):
        load_settings()
