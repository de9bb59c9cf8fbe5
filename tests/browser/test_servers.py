"""The page of a server that has something switched off, and of one that goes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
from playwright.sync_api import Page, expect


def test_the_page_reports_a_disabled_lens_and_a_lost_server(
    open_page: Callable[..., Page], start_server: Callable[..., Any]
) -> None:
    server = start_server(GRADLESS_MODELS="null", GRADLESS_DEBUG_ENDPOINTS="false")
    page = open_page("lens", server=server.address, refusals=True)

    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("The lens is switched off here")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_role("button", name="Compare")).to_be_enabled()

    server.end()

    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(page.locator("#state")).to_have_text("not reachable")
    page.get_by_role("tab", name="Try").click()
    page.get_by_role("button", name="clock", exact=True).click()
    expect(page.get_by_role("tabpanel").get_by_role("alert")).to_contain_text("The server cannot be reached")
    page.get_by_role("tab", name="Live").click()
    expect(page.get_by_role("tabpanel").get_by_role("alert")).to_contain_text("This view did not come")


def test_loaded_and_unloaded_models_appear_and_disappear_in_the_choice(
    open_page: Callable[..., Page], start_server: Callable[..., Any]
) -> None:
    server = start_server(GRADLESS_MODELS="null")
    page = open_page("try", server=server.address, refusals=True)
    choice = page.locator("#model")
    expect(choice.locator("option")).to_have_text(["null"])

    httpx2.post(f"{server.address}/v1/models/second", json={"source": "null"}).raise_for_status()
    choice.focus()
    expect(choice.locator("option")).to_have_text(["null", "second"])
    choice.select_option("second")
    httpx2.delete(f"{server.address}/v1/models/second").raise_for_status()
    choice.blur()
    choice.focus()

    expect(choice.locator("option")).to_have_text(["null"])
    expect(choice).to_have_value("null")
    expect(page.get_by_role("alert")).to_have_count(0)
