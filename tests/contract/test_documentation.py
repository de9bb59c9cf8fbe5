"""The documentation page works on a closed network: it loads everything from this server."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx2
import pytest


class Loaded(HTMLParser):
    """Collects the URLs that a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        source = named.get("href") if tag == "link" else named.get("src")
        if source:
            self.urls.append(source)


@pytest.fixture
def page(address: str) -> str:
    return httpx2.get(f"{address}/docs").raise_for_status().text


def test_the_documentation_loads_nothing_from_other_hosts(address: str, page: str) -> None:
    loaded = Loaded()
    loaded.feed(page)
    kinds = {url.rpartition(".")[2] for url in loaded.urls}
    assert {"js", "css"} <= kinds
    for url in loaded.urls:
        assert re.match(r"\w+/", url), f"{url} is not relative to the page"
        assert httpx2.get(urljoin(f"{address}/docs", url)).status_code == 200


def test_the_documentation_shows_the_openapi_document_of_this_server(address: str) -> None:
    found = re.search(r'url: "([^"]+)"', httpx2.get(f"{address}/docs/start.js").text)
    assert found
    assert httpx2.get(urljoin(f"{address}/docs", found[1])).json()["info"]["title"] == "gradless"


def test_the_page_links_to_the_documentation(address: str) -> None:
    first = httpx2.get(address).raise_for_status().text
    assert '<a class="documents" href="docs">' in first
