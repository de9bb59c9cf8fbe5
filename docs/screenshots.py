"""Take the README's pictures of the page anew: `python docs/screenshots.py http://127.0.0.1:8000`, where the default
model is served."""

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
CALLERS = 6
LOAD_S = 50
COMPARISON_MS = 300_000


def open_page(browser: Browser, address: str, view: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(f"{address}/#{view}")
    page.locator("#model:enabled").wait_for()
    return page


def try_it(browser: Browser, address: str) -> bytes:
    page = open_page(browser, address, "try", viewport=DESKTOP)
    for number, sample in enumerate(("clock", "crossword", "traffic-light"), start=1):
        page.locator(f"[data-sample={sample}]").click()
        page.locator(f".card:nth-child({number})").wait_for()
    page.locator(".matrix tbody tr:nth-child(3)").wait_for()
    page.mouse.move(0, 0)
    return page.screenshot(full_page=True, animations="disabled")


def compare(browser: Browser, address: str) -> bytes:
    page = open_page(browser, address, "lens", viewport=DESKTOP, color_scheme="dark")
    page.get_by_label("Sweep").select_option(label="batches of 1 to 16")
    page.get_by_role("button", name="Compare").click()
    page.locator(".costs").wait_for(timeout=COMPARISON_MS)
    top, bottom = (edge(page.locator(place)) for place in (".saying", ".plots"))
    clip = {"x": 40, "y": top[0], "width": 1200, "height": bottom[1] + 8 - top[0]}
    return page.screenshot(full_page=True, animations="disabled", clip=clip)


def edge(place: Locator) -> tuple[float, float]:
    box = place.bounding_box()
    assert box is not None  # noqa: S101 - it is on the page
    return box["y"], box["y"] + box["height"]


def watch(browser: Browser, address: str) -> bytes:
    page = open_page(browser, address, "live", viewport=PHONE, device_scale_factor=2, is_mobile=True)
    with urllib.request.urlopen(f"{address}/samples/clock.jpg") as answer:  # noqa: S310 - the address is the caller's
        picture = answer.read()
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            urllib.request.urlopen(f"{address}/v1/classify", picture).close()  # noqa: S310

    callers = [threading.Thread(target=load) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    page.wait_for_timeout(LOAD_S * 1e3)
    taken = page.screenshot(animations="disabled")
    ended.set()
    for caller in callers:
        caller.join()
    return taken


def save(name: str, taken: bytes) -> None:
    """As few bytes as the page's few colours need, the rare ones among them kept."""
    taken_in_full = Image.open(BytesIO(taken)).convert("RGB")
    picture = taken_in_full.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    picture.save(Path(__file__).with_name(name), "PNG", optimize=True)


def main(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        save("try.png", try_it(browser, address))
        save("lens.png", compare(browser, address))
        save("live.png", watch(browser, address))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
