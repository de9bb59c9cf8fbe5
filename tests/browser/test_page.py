"""What holds of the page as a whole: its weight, its policy, its reach by keyboard and by screen reader."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, Request, expect

VIEWS = ["try", "lens", "live"]


def show_something(page: Page, view: str) -> None:
    """Fill a view, as far as it fills without a long wait."""
    if view == "try":
        page.get_by_role("button", name="clock", exact=True).click()
        page.get_by_role("button", name="crossword", exact=True).click()
        expect(page.get_by_role("heading", name="Similarity")).to_be_visible()
    elif view == "lens":
        expect(page.get_by_role("button", name="Compare")).to_be_enabled()
    else:
        expect(page.locator("[data-gauge=queue] strong").first).to_have_text("0")


def wait_until_still(page: Page) -> None:
    """Wait until nothing is being renewed and nothing fades: half faded, any text lacks contrast."""
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")


def bytes_sent_for(request: Request) -> int:
    sizes = request.sizes()
    return sizes["responseBodySize"] + sizes["responseHeadersSize"]


def test_the_first_view_weighs_under_100_kb(browser: Browser, address: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        page.wait_for_load_state("networkidle")
        sent = {urlsplit(request.url).path: bytes_sent_for(request) for request in page.requests()}

    assert {"/", "/page/page.css", "/page/page.js", "/page/clock.jpg", "/v1/models"} <= set(sent)
    assert sum(sent.values()) < 100_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_accessibility_violation(open_page: Callable[..., Page], view: str, scheme: str) -> None:
    page = open_page(view, color_scheme=scheme)
    show_something(page, view)
    wait_until_still(page)

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("view", VIEWS)
def test_a_small_phone_shows_each_view_without_scrolling_sideways(open_page: Callable[..., Page], view: str) -> None:
    page = open_page(view, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    show_something(page, view)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_everything_can_be_reached_and_used_by_keyboard_alone(open_page: Callable[..., Page]) -> None:
    page = open_page()
    keys = page.keyboard
    # Registered early, because Chromium passes on dialogs only after a moment.
    page.on("filechooser", lambda _: None)

    page.get_by_role("tab", name="Try").focus()
    keys.press("ArrowRight")
    expect(page.get_by_role("tab", name="Lens")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Lens")).to_be_visible()
    keys.press("End")
    expect(page.get_by_role("tabpanel", name="Live")).to_be_visible()
    keys.press("ArrowRight")
    expect(page.get_by_role("tabpanel", name="Try")).to_be_visible()
    expect(page.get_by_role("tabpanel")).to_have_count(1)

    keys.press("Tab")
    expect(page.get_by_role("link", name="API documentation")).to_be_focused()
    keys.press("Tab")
    expect(page.get_by_role("button", name="Choose pictures")).to_be_focused()
    with page.expect_file_chooser():
        keys.press("Enter")
    keys.press("Tab")
    expect(page.get_by_role("button", name="clock", exact=True)).to_be_focused()
    keys.press("Enter")
    expect(page.get_by_role("article")).to_contain_text("analog clock")

    for _ in range(20):
        if page.get_by_role("button", name="Remove clock.jpg").evaluate("button => button === document.activeElement"):
            break
        keys.press("Tab")
    keys.press("Enter")
    expect(page.get_by_role("article")).to_have_count(0)


def test_the_focused_element_is_marked(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_role("tab", name="Try").focus()
    for _ in range(5):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_a_view_has_an_address_of_its_own(open_page: Callable[..., Page]) -> None:
    page = open_page("live")
    expect(page.get_by_role("tabpanel", name="Live")).to_be_visible()
    page.get_by_role("tab", name="Lens").click()
    assert page.url.endswith("#lens")
    page.go_back()
    expect(page.get_by_role("tabpanel", name="Live")).to_be_visible()


def test_the_policy_blocks_foreign_scripts_and_requests(browser: Browser, address: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
            page.evaluate("fetch('https://example.invalid/').catch(() => {})")
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<b>taken</b>'")
