"""The files of the page: content types and policy. tests/browser tests the behaviour of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from io import BytesIO
from typing import get_args

import httpx2
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.routing import Mount

from app.api.routers.pages import FOLDER
from models.images.samples import Sample, draw

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

MODULES = sorted(path.name for path in FOLDER.glob("*.js"))


async def test_the_page_is_served_at_the_root_path(serve: Serve) -> None:
    async with serve() as client:
        page = await client.get("/")

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text == (FOLDER / "index.html").read_text()


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/page/page.js", "/page/icon.svg", "/samples/clock.jpg"])
async def test_each_file_of_the_page_has_a_policy_that_forbids_other_origins(serve: Serve, path: str) -> None:
    async with serve() as client:
        headers = (await client.get(path)).headers

    policy = dict(directive.split(" ", 1) for directive in headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"])
async def test_the_documentation_has_a_policy_and_cannot_be_framed(serve: Serve, path: str) -> None:
    async with serve() as client:
        answer = await client.get(path)

    assert answer.status_code == 200
    policy = dict(directive.split(" ", 1) for directive in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        *((module, "text/javascript; charset=utf-8") for module in MODULES),
        ("page.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("clock.jpg", "image/jpeg"),
    ],
)
async def test_a_file_is_sent_with_its_content_type(serve: Serve, name: str, content_type: str) -> None:
    async with serve() as client:
        file = await client.get(f"/page/{name}")

    assert (file.status_code, file.headers["content-type"]) == (200, content_type)


async def test_an_unchanged_file_is_not_sent_again(serve: Serve) -> None:
    async with serve() as client:
        first = await client.get("/page/page.css")
        tag = first.headers["etag"]
        again = [
            await client.get("/page/page.css", headers={"If-None-Match": known})
            for known in (tag, f'"other", W/{tag}', '"other"')
        ]

    assert [answer.status_code for answer in again] == [304, 304, 200]
    assert [answer.content for answer in again] == [b"", b"", first.content]
    assert again[0].headers["etag"] == tag
    assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        *(f"/page/{name}" for name in ("none.js", "..%2Fserver.py", "%2e%2e/server.py", "", "index.htm")),
        *("/docs/redoc.standalone.js", "/docs/..%2Fcore.py", "/static-offline-docs/favicon.png", "/samples/cat.jpg"),
    ],
)
async def test_an_unknown_file_of_the_page_is_a_problem(serve: Serve, path: str) -> None:
    async with serve() as client:
        answer = await client.get(path)

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:gradless:problem:not-found"


async def test_no_route_leads_to_a_directory(application: Callable[..., FastAPI]) -> None:
    assert not [route for route in application({}).routes if isinstance(route, Mount)]


@pytest.mark.parametrize("sample", get_args(Sample))
async def test_a_sample_is_the_image_that_the_command_draws(serve: Serve, sample: Sample) -> None:
    async with serve() as client:
        answer = await client.get(f"/samples/{sample}.jpg")
        thumbnail = await client.get(f"/page/{sample}.jpg")

    picture = Image.open(BytesIO(answer.content))
    assert (picture.format, picture.size) == ("JPEG", draw(sample).size)
    assert max(Image.open(BytesIO(thumbnail.content)).size) < 120
    assert len(thumbnail.content) < 8_000


async def test_the_page_and_its_samples_are_not_in_the_openapi_document(serve: Serve) -> None:
    async with serve() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]

    assert not [path for path in paths if re.match(r"/(page|samples|$)", path)]


def test_every_module_of_the_page_is_imported_and_every_import_exists() -> None:
    named = re.findall(r'"(?:page|\.)/([\w-]+\.js)"', "".join(path.read_text() for path in FOLDER.iterdir()))
    assert sorted(set(named)) == MODULES


def test_every_sample_is_offered() -> None:
    offered = re.findall(r'data-sample="([\w-]+)"', (FOLDER / "index.html").read_text())
    assert sorted(offered) == sorted(get_args(Sample))
