"""Ordinary images are decoded in threads, expensive and unusual ones in processes, and no number of these keeps cheap
ones out."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import psutil
import pytest
from PIL import Image

from models.images.decode_pool import DecodePool
from models.images.decoder_process import DecoderProcess
from models.images.preprocessing import preprocess
from models.images.samples import draw, encode
from models.interface.errors import DecodersBusyError, DrainingError, UndecodableImageError
from models.interface.request import CancelToken, ImageLimits
from models.loading import catalog

_LIMITS = ImageLimits()
_TRANSFORM = catalog.find(catalog.NULL_MODEL).build().transform
_PATIENCE_S = 60

JPEG, TIFF = (encode(draw("clock"), image_format) for image_format in ("JPEG", "TIFF"))


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2, _LIMITS)
    yield made
    assert made.close(_PATIENCE_S)


def _decoders(pool: DecodePool) -> list[int]:
    """Process ids."""
    return [each.pid for each in pool._decoders.values() if each.pid is not None]  # noqa: SLF001 - nothing else knows


def test_all_threads_exist_from_the_start() -> None:
    """One that could not be started later would fail an image."""
    before = set(threading.enumerate())
    pool = DecodePool(4, _LIMITS)
    names = sorted(thread.name for thread in set(threading.enumerate()) - before)
    assert pool.close(_PATIENCE_S)
    assert names == [*(f"decode_{number}" for number in range(4)), "decoder-process_0", "decoder-process_1"]


def test_ordinary_images_need_no_process(pool: DecodePool) -> None:
    assert pool.submit(JPEG, _TRANSFORM).result(_PATIENCE_S).equal(preprocess(JPEG, _TRANSFORM, _LIMITS))
    assert not _decoders(pool)


@pytest.mark.parametrize("threads", [1, 2, 8, 32])
def test_everyday_images_need_no_process_however_many_threads_share_the_memory(threads: int) -> None:
    pool = DecodePool(threads, _LIMITS)
    photograph = encode(Image.linear_gradient("L").resize((4000, 3000)).convert("RGB"), "JPEG")
    half_a_megapixel = encode(draw("clock").resize((800, 600)).convert("RGBA"), "PNG")
    for encoded in (photograph, half_a_megapixel):
        pool.submit(encoded, _TRANSFORM).result(_PATIENCE_S)
    assert not _decoders(pool)
    assert pool.close(_PATIENCE_S)


@pytest.mark.parametrize("image_format", ["TIFF", "BMP", "GIF"])
def test_unusual_formats_are_decoded_in_a_process_to_the_same_pixels(pool: DecodePool, image_format: str) -> None:
    encoded = encode(draw("clock"), image_format)
    assert pool.submit(encoded, _TRANSFORM).result(_PATIENCE_S).equal(preprocess(encoded, _TRANSFORM, _LIMITS))
    assert len(_decoders(pool)) == 1


def test_a_jpeg_that_libjpeg_warns_of_is_read_once_more_in_a_process_and_at_a_reduced_size(pool: DecodePool) -> None:
    file = io.BytesIO()
    draw("clock").resize((4000, 3000)).save(file, "JPEG")
    damaged = file.getvalue()[:-2] + b"\x12" * 20 + file.getvalue()[-2:]
    pixels = pool.submit(damaged, _TRANSFORM).result(_PATIENCE_S)
    assert (pixels.float() - preprocess(file.getvalue(), _TRANSFORM, _LIMITS).float()).abs().mean() < 4
    assert _decoders(pool)


def test_a_lossless_jpeg_never_comes_to_the_decoder_that_it_crashes(pool: DecodePool) -> None:
    baseline = JPEG.index(b"\xff\xc0")
    lossless = JPEG[: baseline + 1] + b"\xc3" + JPEG[baseline + 2 :]
    with pytest.raises(UndecodableImageError):
        pool.submit(lossless, _TRANSFORM).result(_PATIENCE_S)
    assert pool.submit(JPEG, _TRANSFORM).result(_PATIENCE_S).shape[0] == 3


class _Held:
    """A decoder that waits until it is released."""

    def __init__(self) -> None:
        self.began: queue.Queue[None] = queue.Queue()
        self.go_on = threading.Event()
        self.pids: list[int | None] = []


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Held]:
    gate, decode = _Held(), DecoderProcess.decode

    def wait(self: DecoderProcess, *args: object, **kwargs: object) -> object:
        gate.began.put(None)
        assert gate.go_on.wait(_PATIENCE_S)
        pixels = decode(self, *args, **kwargs)  # type: ignore[arg-type]
        gate.pids.append(self.pid)
        return pixels

    monkeypatch.setattr(DecoderProcess, "decode", wait)
    yield gate
    gate.go_on.set()


def test_expensive_images_use_at_most_half_of_the_decoders(held: _Held) -> None:
    pool = DecodePool(4, _LIMITS)
    waiting = [pool.submit(TIFF, _TRANSFORM) for _ in range(8)]
    for _ in range(2):
        held.began.get(timeout=_PATIENCE_S)
    # Every thread has handed its image over: cheap ones are decoded meanwhile.
    for _ in range(8):
        pool.submit(JPEG, _TRANSFORM).result(_PATIENCE_S)
    assert held.began.empty()
    held.go_on.set()
    assert all(each.result(_PATIENCE_S) is not None for each in waiting)
    assert pool.close(_PATIENCE_S)


def test_more_expensive_images_than_can_be_decoded_in_time_are_refused(held: _Held) -> None:
    pool = DecodePool(1, _LIMITS, longest_wait_s=1e-9)
    first = pool.submit(TIFF, _TRANSFORM)
    held.began.get(timeout=_PATIENCE_S)
    with pytest.raises(DecodersBusyError, match="try again in 1 s"):
        pool.submit(TIFF, _TRANSFORM).result(_PATIENCE_S)
    held.go_on.set()
    first.result(_PATIENCE_S)
    assert pool.submit(TIFF, _TRANSFORM).result(_PATIENCE_S) is not None
    assert pool.close(_PATIENCE_S)


class _CancellableJob:
    """A job whose client disconnects while it waits for a process."""

    def __init__(self) -> None:
        self.cancel_token = CancelToken()
        self.held = TIFF

    def take_image(self) -> bytes:
        taken, self.held = self.held, b""
        return taken

    def put_back(self, encoded: bytes) -> None:
        self.held = encoded


def test_an_expensive_image_of_a_disconnected_client_is_not_decoded(held: _Held) -> None:
    pool = DecodePool(1, _LIMITS)
    first = pool.submit(TIFF, _TRANSFORM)
    held.began.get(timeout=_PATIENCE_S)
    job, outcome = _CancellableJob(), Future[object]()
    pool.decode(job, _TRANSFORM, outcome.set_result)
    # The pool's one thread has handed it over by then.
    pool.submit(JPEG, _TRANSFORM).result(_PATIENCE_S)
    # So that it can drop the file when its client disconnects.
    assert job.held is TIFF
    job.cancel_token.cancel()
    held.go_on.set()
    first.result(_PATIENCE_S)
    assert outcome.result(_PATIENCE_S) is None
    assert held.began.empty()
    assert pool.close(_PATIENCE_S)


def test_a_closed_pool_finishes_its_decodes_refuses_new_ones_and_leaves_no_process(held: _Held) -> None:
    pool = DecodePool(1, _LIMITS)
    accepted = pool.submit(TIFF, _TRANSFORM)
    held.began.get(timeout=_PATIENCE_S)
    assert not pool.close(timeout_s=0)
    with pytest.raises(DrainingError):
        pool.submit(JPEG, _TRANSFORM)
    held.go_on.set()
    assert accepted.result(_PATIENCE_S) is not None
    assert pool.close(_PATIENCE_S)
    (decoder,) = held.pids
    assert decoder is not None
    assert not psutil.pid_exists(decoder)
