"""A real browser on a real server. In every test the page must log no error, violate no policy and send no request to
another host."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from observe.processes import gradless

PATIENCE_MS = 60_000

# The default model where labels matter, and a light one where they do not. The lens's tests have `small`.
DEFAULT = "efficientnet_lite0"
LIGHT = "shufflenet_v2_x0_5:random"

# Chromium's message for any status from 400 on, expected ones too.
_REFUSED = "Failed to load resource"

_CHROMIUM_ARGUMENTS = [
    # Features that would send requests to other hosts.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Without a GPU, Chromium would draw as one does, at several times the cost.
    "--disable-gpu",
    "--disable-software-rasterizer",
    # Chromium does not start its sandbox as root.
    *(["--no-sandbox"] if os.geteuid() == 0 else []),
]


class Server(NamedTuple):
    address: str
    end: Callable[[], None]


# OpenVINO would convert each model at its first start.
_SETTINGS = {"GRADLESS_BACKEND": "eager"}


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory, warm_command: Any, small_model: Path) -> Iterator[str]:
    """Return the address of a server of three models, for tests that do not change it."""
    settings = _SETTINGS | {"GRADLESS_MODELS": f"{DEFAULT},{LIGHT},{small_model}"}
    with gradless(tmp_path_factory.mktemp("server"), settings, start=warm_command.start) as served:
        yield served


@pytest.fixture
def start_server(tmp_path: Path, warm_command: Any) -> Iterator[Callable[..., Server]]:
    """Start a server for one test with these settings; it ends with the test or when it is stopped."""
    with contextlib.ExitStack() as running:

        def start(**settings: str) -> Server:
            own = running.enter_context(contextlib.ExitStack())
            started = gradless(tmp_path, _SETTINGS | settings, start=warm_command.start)
            return Server(own.enter_context(started), own.close)

        yield start


_playwright = contextlib.ExitStack()


@pytest.fixture(scope="session")
def browser() -> Browser:
    path = shutil.which("chromium")
    assert path, "these tests need Debian's chromium, which `make test` installs"
    playwright = _playwright.enter_context(sync_playwright())
    browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM_ARGUMENTS)
    _playwright.callback(browser.close)
    expect.set_options(timeout=PATIENCE_MS)
    return browser


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End the browser after the last test of this folder: while Playwright's event loop is there, tests in other
    folders cannot have theirs."""
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        _playwright.close()


class Watch:
    """Notes what a page does that none should do."""

    def __init__(self, context: BrowserContext) -> None:
        self.faults: list[str] = []
        self.refusals: list[str] = []
        self.requests: list[Request] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self.faults.append(f"error: {error.error}"))
        context.on("request", self._request)

    # Not the list's own append: Playwright hangs an attribute on what it calls, and a built-in function bears none.
    def _request(self, request: Request) -> None:
        self.requests.append(request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in {"error", "warning"}:
            return
        kind = self.refusals if message.text.startswith(_REFUSED) else self.faults
        kind.append(f"{message.type}: {message.text}")

    def hosts(self) -> set[str]:
        """Return the hosts of the page's requests, without blobs."""
        return {urlsplit(request.url.removeprefix("blob:")).netloc for request in self.requests}


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Open the page at a view, with options of a browser context; `server` is another server's address.

    At the end it must have sent requests only to its own server and logged nothing to its console. `refusals=True`
    allows the browser's own messages about refused requests.
    """
    opened: list[tuple[str, bool, Watch]] = []
    with contextlib.ExitStack() as contexts:

        def start(view: str = "try", *, server: str = address, refusals: bool = False, **options: Any) -> Page:
            context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
            contexts.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            opened.append((server, refusals, Watch(context)))
            page = context.new_page()
            page.goto(f"{server}/#{view}")
            expect(page.get_by_label("Model", exact=True)).to_be_enabled()
            return page

        yield start
        for server, refusals, watch in opened:
            assert watch.faults == []
            assert refusals or watch.refusals == []
            assert watch.hosts() == {urlsplit(server).netloc}


@pytest.fixture
def try_page(open_page: Callable[..., Page]) -> Page:
    return open_page("try")


@pytest.fixture(scope="session")
def default_model() -> str:
    return DEFAULT


@pytest.fixture(scope="session")
def light_model() -> str:
    return LIGHT


@pytest.fixture
def choose(tmp_path: Path) -> Callable[[Page, Mapping[str, bytes]], None]:
    """Give the page files by name, as if chosen in the browser's dialog."""

    def give(page: Page, files: Mapping[str, bytes]) -> None:
        for name, body in files.items():
            (tmp_path / name).write_bytes(body)
        page.locator("input[type=file]").set_input_files([tmp_path / name for name in files])

    return give
