"""A server that has warmed up stays the size it is, also while clients do not read."""

from __future__ import annotations

import asyncio
import io
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from models.images.samples import draw, encode

CLIENTS = 8
ALLOWED_GROWTH = 30 * 2**20

pytestmark = pytest.mark.anyio


async def test_five_hundred_requests_cost_no_lasting_memory(
    start_server: Callable[..., Any], clock_jpeg: bytes, small_model: Path
) -> None:
    # What could leak is on the way to the network and back.
    server = start_server(GRADLESS_MODELS=str(small_model))
    process = psutil.Process(server.process.pid)

    async def call(http: httpx2.AsyncClient, requests: int) -> None:
        for _ in range(requests):
            answer = await http.post("/v1/classify", content=clock_jpeg)
            assert answer.status_code == 200

    async def spread(http: httpx2.AsyncClient, requests: int) -> None:
        await asyncio.gather(*(call(http, -(-requests // CLIENTS)) for _ in range(CLIENTS)))

    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
        await spread(http, 200)
        before = process.memory_info().rss
        await spread(http, 500)
        assert process.memory_info().rss - before < ALLOWED_GROWTH


async def test_vast_pictures_cost_no_lasting_memory(start_server: Callable[..., Any], clock_jpeg: bytes) -> None:
    server = start_server(GRADLESS_MODELS="null")
    service = psutil.Process(server.process.pid)

    def resident_bytes() -> int:
        """Of all processes: large pictures are decoded in one of their own."""
        return sum(each.memory_info().rss for each in (service, *service.children(recursive=True)))

    # 24 megapixels: Pillow alone takes 96 MB for it.
    file = io.BytesIO()
    Image.new("RGB", (6000, 4000), (200, 30, 90)).save(file, "PNG")
    whole = file.getvalue()
    vast = {200: whole, 422: whole[: round(0.9 * len(whole))]}

    async with httpx2.AsyncClient(base_url=server.address, timeout=60) as http:
        for _ in range(20):
            await http.post("/v1/classify", content=clock_jpeg)
        # It starts the process of large pictures.
        await http.post("/v1/classify", content=encode(draw("clock"), "TIFF"))
        before = resident_bytes()
        for status, picture in vast.items():
            assert (await http.post("/v1/classify", content=picture)).status_code == status
            # The decode thread may release the pixels just after the answer.
            async with asyncio.timeout(60):
                while resident_bytes() - before >= ALLOWED_GROWTH:  # noqa: ASYNC110 - of other processes
                    await asyncio.sleep(0.01)


def test_a_document_that_clients_do_not_read_is_not_copied_for_each(start_server: Callable[..., Any]) -> None:
    server = start_server(GRADLESS_MODELS="null")
    process, path = psutil.Process(server.process.pid), "/docs/swagger-ui-bundle.js"
    document = httpx2.get(server.address + path).content
    clients = 4 * ALLOWED_GROWTH // len(document)
    before = process.memory_info().rss
    with ExitStack() as unread:
        for _ in range(clients):
            client = unread.enter_context(socket.socket())
            # Otherwise the kernel takes the whole document.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((httpx2.URL(server.address).host, httpx2.URL(server.address).port))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert select.select([client], [], [], 60)[0]
        assert process.memory_info().rss - before < ALLOWED_GROWTH
        # It arrives whole, once the client reads.
        with client.makefile("rb") as answer:
            assert answer.read().endswith(document)
