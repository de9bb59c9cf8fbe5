"""A real server refuses images that are expensive to decode, or decodes them in separate processes."""

from __future__ import annotations

import fcntl
import io
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from models.images.samples import draw, encode
from reliability.costly import CORPUS

# One for each kind of cost that a header shows, and files whose header does not show it.
_REFUSED = ("jpeg-arithmetic-99-scans-of-12-MP.jpg", "tiff-63-tiles-of-48-MB.tif", "webp-canvas-50-MP.webp")
_NOT_TOLD = ("tiff-tiles-of-arithmetic-jpegs-1-MP.tif", "webp-65536-groups.webp")


@pytest.fixture(scope="module", params=["0", "2"], ids=["in one process", "behind two workers"])
def service(request: pytest.FixtureRequest, serving: type[Any], warm_command: Any) -> Iterator[Any]:
    with serving(warm_command.start, GRADLESS_HTTP_WORKERS=request.param) as running:
        yield running


def _post(service: Any, encoded: bytes) -> httpx2.Response:
    return httpx2.post(f"{service.address}/v1/classify", content=encoded, timeout=60)


def _decoders(service: Any) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children(recursive=True)
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "models.images.decoder_process" in child.cmdline()]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_image_that_is_too_expensive_to_decode_is_refused_and_the_same_process_serves_on(service: Any) -> None:
    for name in _REFUSED:
        refused = _post(service, CORPUS[name]())
        assert refused.status_code == 422, name
        assert refused.json()["type"] == "urn:gradless:problem:too-costly", name
    # None of them was decoded.
    assert not _decoders(service)
    for name in _NOT_TOLD:
        # A decoder without memory may report another reason.
        assert _post(service, CORPUS[name]()).status_code == 422, name
    # Complete and without data, so grey. libjpeg-turbo, asked for a reduced size, writes beyond its memory.
    assert _post(service, CORPUS["jpeg-lossless-colour.jpg"]()).status_code == 200
    label = _post(service, encode(draw("clock"), "TIFF")).json()["results"][0]["predictions"][0]["label"]
    assert label == "analog clock"
    assert service.process.poll() is None


def test_an_expensive_image_fails_alone_among_others_of_its_request(service: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "GIF")
    files = [("f", draw_file) for draw_file in (encode(draw("clock"), "JPEG"), CORPUS[_REFUSED[0]](), file.getvalue())]
    answer = httpx2.post(f"{service.address}/v1/classify", files=files, timeout=60)
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert first["predictions"][0]["label"] == "analog clock"
    assert second["error"]["type"] == "urn:gradless:problem:too-costly"
    assert third["predictions"]


# Last of the tests that share the service, because it stops it.
def test_a_decoder_that_is_killed_costs_no_further_image_and_none_outlives_the_service(service: Any) -> None:
    clock = encode(draw("clock"), "BMP")
    assert _post(service, clock).status_code == 200
    killed = _decoders(service)
    for decoder in killed:
        decoder.kill()
    # An image that is sent to a decoder while it dies fails.
    while not all(_has_ended(decoder) for decoder in killed):
        pass
    assert _post(service, clock).status_code == 200
    left = _decoders(service)
    assert left
    service.process.terminate()
    assert service.process.wait(60) == 0
    gone, alive = psutil.wait_procs(left, timeout=60)
    assert len(gone) == len(left)
    assert not alive


def test_expensive_decodes_of_all_workers_wait_for_the_same_memory(start_server: Callable[..., Any]) -> None:
    service = start_server(GRADLESS_HTTP_WORKERS="2")
    clock = encode(draw("clock"), "BMP")
    with ThreadPoolExecutor(2) as clients:
        with _all_decode_memory(service):
            # Two connections at once, so each worker has one.
            answers = [clients.submit(_post, service, clock) for _ in range(2)]
            assert not wait(answers, timeout=2, return_when=FIRST_COMPLETED).done
        assert [answer.result().status_code for answer in answers] == [200, 200]


@contextmanager
def _all_decode_memory(service: Any) -> Iterator[None]:
    """Hold all decode memory: the budget that the workers share, and the one of the engine process."""
    descriptors = Path(f"/proc/{service.process.pid}/fd").iterdir()
    with ExitStack() as files:
        for budget in [each for each in descriptors if "memfd:decode-memory" in str(each.readlink())]:
            file = files.enter_context(budget.open("r+b", buffering=0))
            # struct flock of fcntl(2); a length of 0 is everything.
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        yield
