"""The page of a server with API keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

KEY = "a-key-for-the-page-0001"


def test_the_page_asks_for_a_key_and_uses_it_in_every_view(browser: Browser, start_server: Callable[..., Any]) -> None:
    server = start_server(GRADLESS_MODELS="null", GRADLESS_API_KEYS=f"inference+metrics:{KEY}")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.address)
        expect(page.get_by_role("alert")).to_contain_text("An API key is needed")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()

        page.get_by_label("API key").fill("not-a-key-of-this-server")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_contain_text("This API key is unknown")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()

        page.get_by_role("button", name="clock", exact=True).click()
        expect(page.get_by_role("article", name="clock.jpg").get_by_role("listitem").first).to_be_visible()
        # What is there to be copied and sent on names the key's place, not the key.
        expect(page.get_by_text('-H "Authorization: Bearer $GRADLESS_KEY"').first).to_be_attached()
        assert KEY not in page.content()

        page.get_by_role("tab", name="Live").click()
        expect(page.locator("[data-gauge=queue] strong").first).to_have_text("0")
        page.reload()
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
