"""Live: the page's gauges are the service's own metrics."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect


@pytest.fixture
def load(address: str, clock_jpeg: bytes, light_model: str) -> Iterator[Callable[[], None]]:
    """Keep the server busy from a call on until the test ends."""
    ended = threading.Event()

    def send() -> None:
        with httpx2.Client(base_url=address) as client:
            while not ended.is_set():
                client.post("/v1/classify", params={"model": light_model}, content=clock_jpeg).raise_for_status()
                # Leaves time on the cores for the page.
                ended.wait(0.01)

    with ThreadPoolExecutor(4) as clients:

        def start() -> None:
            for _ in range(4):
                clients.submit(send)

        yield start
        ended.set()


def gauge(page: Page, name: str) -> Locator:
    return page.locator(f"[data-gauge={name}]")


def reading(page: Page, name: str, which: int = 0) -> Locator:
    return gauge(page, name).locator("strong").nth(which)


def test_the_numbers_move_under_load(open_page: Callable[..., Page], load: Callable[[], None]) -> None:
    page = open_page("live")
    expect(reading(page, "requests")).to_have_text("0")
    expect(reading(page, "latency")).to_have_text("\N{EN DASH}")

    load()

    expect(reading(page, "requests")).to_have_text(re.compile(r"[1-9]"))
    expect(reading(page, "latency")).to_have_text(re.compile(r"[\d.]+\u00a0(ms|s)"))
    expect(reading(page, "latency", 1)).to_have_text(re.compile(r"[\d.]+\u00a0(ms|s)"))
    expect(reading(page, "batch")).to_have_text(re.compile(r"[1-4]"))
    expect(reading(page, "queue", 1)).to_have_text(re.compile(r"[1-4]"))
    expect(gauge(page, "stages").get_by_role("row", name="forward")).to_contain_text(re.compile(r"[\d.]+\u00a0ms"))
    expect(gauge(page, "requests").locator("path.line")).to_have_attribute("d", re.compile(r"M.*L"))


def test_the_memory_shown_is_the_memory_scraped(open_page: Callable[..., Page]) -> None:
    page = open_page("live")
    with page.expect_response("**/metrics") as scraped:
        pass
    resident = float(re.findall(r"^process_resident_memory_bytes (\S+)", scraped.value.text(), re.MULTILINE)[0])
    expect(reading(page, "memory")).to_have_text(
        f"{float(f'{resident:.3g}') / (1e9 if resident >= 1e9 else 1e6):g}\u00a0{'GB' if resident >= 1e9 else 'MB'}"
    )


def test_nothing_is_scraped_while_another_view_is_open(open_page: Callable[..., Page]) -> None:
    page = open_page("live")
    expect(reading(page, "queue")).to_have_text("0")
    # The next scrape is not yet due, and one that began before the click is not counted.
    with page.expect_response("**/metrics"):
        pass
    page.get_by_role("tab", name="Try").click()
    expect(page.get_by_role("tabpanel", name="Try")).to_be_visible()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(urlsplit(request.url).path))
    # Longer than from one scrape to the next.
    page.wait_for_timeout(2500)
    assert "/metrics" not in requested

    with page.expect_response("**/metrics"):
        page.get_by_role("tab", name="Live").click()
