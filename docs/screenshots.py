"""Take the screenshots of the page: `python docs/screenshots.py http://127.0.0.1:8000`.

The service at that address must serve the default model.
"""

from __future__ import annotations

import shutil
import sys
import threading
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 1080}
CLIENTS = 6
LOAD_S = 50
COMPARISON_MS = 300_000


def open_page(browser: Browser, address: str, view: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(f"{address}/#{view}")
    page.locator("#model:enabled").wait_for()
    return page


def screenshot_of_try(browser: Browser, address: str) -> bytes:
    page = open_page(browser, address, "try", viewport=DESKTOP)
    for number, sample in enumerate(("clock", "crossword", "traffic-light"), start=1):
        page.locator(f"[data-sample={sample}]").click()
        page.locator(f".card:nth-child({number})").wait_for()
    page.locator(".matrix tbody tr:nth-child(3)").wait_for()
    page.mouse.move(0, 0)
    return page.screenshot(full_page=True, animations="disabled")


def screenshot_of_lens(browser: Browser, address: str) -> bytes:
    page = open_page(browser, address, "lens", viewport=DESKTOP, color_scheme="dark")
    page.get_by_label("Sweep").select_option(label="batches of 1 to 16")
    page.get_by_role("button", name="Compare").click()
    page.locator(".costs").wait_for(timeout=COMPARISON_MS)
    top, bottom = (edge(page.locator(place)) for place in (".saying", ".plots"))
    clip = {"x": 40, "y": top[0], "width": 1200, "height": bottom[1] + 8 - top[0]}
    return page.screenshot(full_page=True, animations="disabled", clip=clip)


def edge(place: Locator) -> tuple[float, float]:
    box = place.bounding_box()
    assert box is not None  # noqa: S101 - it is visible
    return box["y"], box["y"] + box["height"]


def screenshot_of_live(browser: Browser, address: str) -> bytes:
    page = open_page(browser, address, "live", viewport=PHONE, device_scale_factor=2, is_mobile=True)
    with urllib.request.urlopen(f"{address}/samples/clock.jpg") as response:  # noqa: S310 - the address is an argument of the script
        picture = response.read()
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            urllib.request.urlopen(f"{address}/v1/classify", picture).close()  # noqa: S310

    clients = [threading.Thread(target=load) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    page.wait_for_timeout(LOAD_S * 1e3)
    screenshot = page.screenshot(animations="disabled")
    ended.set()
    for client in clients:
        client.join()
    return screenshot


def save(name: str, screenshot: bytes) -> None:
    """Save a screenshot with a palette of 256 colours that keeps rare ones, for a small file."""
    full_colour = Image.open(BytesIO(screenshot)).convert("RGB")
    picture = full_colour.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    picture.save(Path(__file__).with_name(name), "PNG", optimize=True)


def main(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        save("try.png", screenshot_of_try(browser, address))
        save("lens.png", screenshot_of_lens(browser, address))
        save("live.png", screenshot_of_live(browser, address))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
