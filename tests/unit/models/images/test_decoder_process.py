"""A decoder process may crash, hang or take too much: its image is refused, and the next one is decoded."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import NoReturn

import numpy as np
import psutil
import pytest
from PIL import Image

from models.images import decoder_process
from models.images.costs import DecodeCost
from models.images.decode import Strips, decode_strips
from models.images.decoder_process import DecoderProcess
from models.images.formats import PILLOW_NAMES, predict_cost
from models.images.samples import draw, encode
from models.interface.errors import TooCostlyError, UndecodableImageError
from models.interface.request import ImageLimits

_LIMITS = ImageLimits()
_CLOCK = encode(draw("clock"), "PNG")
_PATIENCE_S = 60


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    made = DecoderProcess(_LIMITS)
    yield made
    made.close()


def _decode(decoder: DecoderProcess, encoded: bytes = _CLOCK, predicted: DecodeCost | None = None) -> object:
    return decoder.decode(encoded, predicted or predict_cost(encoded, _LIMITS), Strips.assembled, enough=0)


def _pid(decoder: DecoderProcess) -> int:
    assert decoder.pid is not None
    return decoder.pid


def _until(holds: Callable[[], bool]) -> None:
    until = monotonic() + _PATIENCE_S
    while not holds():
        assert monotonic() < until


WhileItDecodes = Callable[[Callable[[int], None]], BaseException | None]


@pytest.fixture
def while_it_decodes(decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch) -> WhileItDecodes:
    """Stop the child, send it an image, act on it, let it go on, and return what decode() raised."""
    waits_for_answer = threading.Event()
    receive = Connection.recv_bytes

    def limited_recv(connection: Connection, most: int | None = None) -> bytes:
        waits_for_answer.set()
        return receive(connection, most)

    def run(act: Callable[[int], None]) -> BaseException | None:
        _decode(decoder)
        monkeypatch.setattr(Connection, "recv_bytes", limited_recv)
        pid = _pid(decoder)
        os.kill(pid, signal.SIGSTOP)
        raised: list[BaseException] = []

        def decode() -> None:
            try:
                _decode(decoder)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                raised.append(error)

        thread = threading.Thread(target=decode)
        thread.start()
        assert waits_for_answer.wait(_PATIENCE_S)
        act(pid)
        os.kill(pid, signal.SIGCONT)
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return run


@pytest.mark.parametrize("image_format", PILLOW_NAMES.values())
def test_every_format_is_decoded_to_the_pixels_of_this_process(decoder: DecoderProcess, image_format: str) -> None:
    encoded = encode(draw("clock"), image_format)
    assert np.array_equal(_decode(decoder, encoded), decode_strips(encoded, _LIMITS, enough=0).assembled())


def test_a_large_picture_comes_back_in_strips_and_whole(decoder: DecoderProcess) -> None:
    picture = Image.effect_noise((1800, 1500), 80).convert("RGB")
    encoded = encode(picture, "PNG")
    assert np.array_equal(_decode(decoder, encoded), np.asarray(picture))


def test_a_rotated_picture_is_turned(decoder: DecoderProcess) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    draw("clock").resize((40, 30)).save(file, "PNG", exif=exif)
    pixels = _decode(decoder, file.getvalue())
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (40, 30, 3)


def test_a_bad_image_is_refused_with_its_reason_and_the_process_goes_on(decoder: DecoderProcess) -> None:
    _decode(decoder)
    before = decoder.pid
    with pytest.raises(UndecodableImageError, match=r"The PNG image cannot be decoded: .*truncated"):
        decoder.decode(_CLOCK[:1000], predict_cost(_CLOCK, _LIMITS), Strips.assembled, enough=0)
    _decode(decoder)
    assert decoder.pid == before


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_of_the_decoder_refuses_its_image_and_the_next_one_is_decoded(
    decoder: DecoderProcess, while_it_decodes: WhileItDecodes, number: signal.Signals
) -> None:
    refusal = while_it_decodes(lambda pid: os.kill(pid, number))
    assert isinstance(refusal, UndecodableImageError)
    assert "its decoder crashed" in str(refusal)
    _decode(decoder)


@pytest.mark.parametrize(
    "answers",
    [
        [b"no JSON"],
        [b"[1, 2]"],
        [b"null"],
        [b"[" * 60_000],
        [b'{"height": Infinity, "width": 1, "orientation": 1}'],
        [b'{"height": null, "width": 1, "orientation": 1}'],
        [b'{"height": -1, "width": -1, "orientation": 1}'],
        [b"{" + b" " * 70_000 + b'"height": 1, "width": 1, "orientation": 1}', bytes(3)],
        [b'{"height": 1, "width": 1, "orientation": 1}', bytes(4)],
        [b'{"height": 2, "width": 1, "orientation": 1}', bytes(4)],
        [b'{"height": 2, "width": 1, "orientation": 1}', b""],
        [b'{"height": 2, "width": 1, "orientation": 1}', bytes(3), bytes(4)],
    ],
    ids=lambda answers: f"{answers[0][:40].decode()} {[len(strip) for strip in answers[1:]]}",
)
def test_an_invalid_answer_refuses_its_image_and_the_next_one_is_decoded(
    decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch, answers: list[bytes]
) -> None:
    monkeypatch.setattr(decoder_process, "_DYING_S", 0)
    _decode(decoder)
    assert decoder._child is not None  # noqa: SLF001 - there is no other way to speak in the child's place
    ours, its = multiprocessing.Pipe()
    decoder._child.connection.close()  # noqa: SLF001
    decoder._child = decoder._child._replace(connection=ours)  # noqa: SLF001
    with its:
        for answer in answers:
            its.send_bytes(answer)
        with pytest.raises((UndecodableImageError, TooCostlyError)):
            _decode(decoder)
    _decode(decoder)


def test_strips_that_the_service_did_not_read_are_not_part_of_the_next_picture(decoder: DecoderProcess) -> None:
    encoded = encode(Image.effect_noise((1800, 1500), 80).convert("RGB"), "PNG")
    expected = _decode(decoder)

    def no_memory(picture: Strips) -> NoReturn:
        next(picture.strips)
        raise MemoryError

    with pytest.raises(MemoryError):
        decoder.decode(encoded, predict_cost(encoded, _LIMITS), no_memory, enough=0)
    assert np.array_equal(_decode(decoder), expected)


def test_a_decoder_that_died_while_idle_costs_no_image(decoder: DecoderProcess) -> None:
    _decode(decoder)
    child = psutil.Process(_pid(decoder))
    child.kill()
    _until(lambda: child.status() == psutil.STATUS_ZOMBIE)
    _decode(decoder)
    assert decoder.pid != child.pid


def test_a_decoder_that_hangs_is_killed_at_its_deadline(
    decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    _decode(decoder)
    hanging = psutil.Process(_pid(decoder))
    hanging.suspend()
    monkeypatch.setattr(decoder_process, "_LEAST_WALL_S", 0.1)
    monkeypatch.setattr(decoder_process, "_WALL_FACTOR", 0)
    with pytest.raises(TooCostlyError, match="needed more"):
        _decode(decoder)
    assert not psutil.pid_exists(hanging.pid)
    monkeypatch.undo()
    _decode(decoder)


def test_a_decode_that_takes_more_cpu_than_was_predicted_is_ended(decoder: DecoderProcess) -> None:
    # Runs of one pixel are unpacked in Python: over a second of it.
    pixels = (b"\x01\x01" * 2500 + b"\x00\x00") * 4000
    head = b"BM" + bytes(8) + (54 + 1024).to_bytes(4, "little")
    size = (40).to_bytes(4, "little") + (5000).to_bytes(4, "little") + (4000).to_bytes(4, "little")
    encoded = head + size + b"\1\0\x08\0\1\0\0\0" + bytes(20) + bytes(1024) + pixels
    with pytest.raises(TooCostlyError, match=r"needed more than .* CPU time"):
        _decode(decoder, encoded, DecodeCost(0, 2**27, 2**27, ordinary=False))
    _decode(decoder)


def test_a_decode_that_takes_more_memory_than_was_predicted_is_ended(decoder: DecoderProcess) -> None:
    encoded = encode(Image.new("RGB", (7000, 5000)), "PNG")
    _decode(decoder)
    before = decoder.pid
    with pytest.raises(TooCostlyError, match="MB of memory"):
        _decode(decoder, encoded, DecodeCost(5, 2**20, 2**20, ordinary=False))
    _decode(decoder)
    assert decoder.pid == before


def test_signals_to_all_processes_of_a_service_do_not_end_a_decode(while_it_decodes: WhileItDecodes) -> None:
    def signal_all(pid: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)

    assert while_it_decodes(signal_all) is None


def test_the_process_has_neither_torch_nor_the_secrets_of_its_parent(
    decoder: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADLESS_API_KEYS", "a-secret")
    _decode(decoder)
    child = Path(f"/proc/{decoder.pid}")
    assert b"a-secret" not in (child / "environ").read_bytes()
    assert "torch" not in (child / "maps").read_text(encoding="utf-8")
    assert len(list((child / "fd").iterdir())) <= 5


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "import sys; from models.images.decoder_process import DecoderProcess\n"
        "from models.interface.request import ImageLimits\n"
        "from models.images.formats import predict_cost; from models.images.samples import draw, encode\n"
        "from models.images.decode import Strips\n"
        "clock, decoder = encode(draw('clock'), 'PNG'), DecoderProcess(ImageLimits())\n"
        "decoder.decode(clock, predict_cost(clock, ImageLimits()), Strips.assembled, enough=0)\n"
        "print(decoder.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=_PATIENCE_S)
    assert gone
    assert not alive
