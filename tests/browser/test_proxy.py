"""The page behind a reverse proxy that serves it under a path of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from playwright.sync_api import Page, expect

PREFIX = "/vision/"


@pytest.fixture
def proxied(address: str) -> Iterator[str]:
    """Where a proxy serves everything under a prefix, and nothing else."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(PREFIX):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            target = f"{address}/{self.path.removeprefix(PREFIX)}"
            answer = httpx2.request(self.command, target, content=body, headers={"Content-Type": "image/jpeg"})
            self.send_response(answer.status_code)
            for name in ("content-type", "content-length", "content-security-policy", "server-timing"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET  # noqa: N815 - http.server's own naming

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}{PREFIX.rstrip('/')}"
        proxy.shutdown()
        thread.join()


def test_the_page_works_under_a_path_of_its_own(open_page: Callable[..., Page], proxied: str) -> None:
    page = open_page("try", server=proxied)
    page.get_by_role("button", name="clock", exact=True).click()
    expect(page.get_by_role("article").get_by_role("listitem").first).to_contain_text("analog clock")
    expect(page.locator("pre").first).to_contain_text(f"{proxied}/v1/classify")
    page.get_by_role("tab", name="Live").click()
    expect(page.locator("[data-gauge=queue] strong").first).to_have_text("0")
