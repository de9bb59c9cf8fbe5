"""The documentation in a browser: drawn, and of use, under a policy of its own."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect


def test_the_documentation_is_drawn_and_sends_requests_to_this_server(
    open_page: Callable[..., Page], address: str
) -> None:
    page = open_page("try")
    page.goto(f"{address}/docs")
    expect(page.get_by_role("heading", name="gradless")).to_be_visible()
    operation = page.locator(".opblock", has_text="/healthz").first
    operation.get_by_role("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
