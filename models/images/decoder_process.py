"""Decode images in a separate process, which may crash, hang or be killed without harm to the service.

The parent (`DecoderProcess`) starts `python -m models.images.decoder_process` and communicates over a pair of sockets.
The child imports no torch, has no secrets in its memory or environment, and limits its CPU time, memory and files. Its
replies are JSON and raw pixels, never pickles, so that a compromised decoder does not compromise the service.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import NamedTuple, TypeVar

import numpy as np

from models.images.colour import Conversion, Pixels
from models.images.costs import DecodeCost
from models.images.decode import JpegReader, Reduction, Strips, decode_strips, ignore_pillow_warnings
from models.images.formats import format_of
from models.interface.errors import ImageError, TooCostlyError, UndecodableImageError
from models.interface.request import ImageLimits

_log = logging.getLogger(__name__)

# Limits of a decode relative to its prediction, which is an upper bound: CPU seconds, and bytes of address space beyond
# those of the idle process and the file. The spare bytes are for memory that the allocator does not return at once.
_CPU_FACTOR = 2
_SPARE_CPU_S = 1
_MEMORY_SHARE = 4
_SPARE_BYTES = 48 * 2**20
# A child may wait for a core. It hangs if it has not replied after so many times its CPU seconds.
_WALL_FACTOR = 20
_LEAST_WALL_S = 10.0
# Niceness, as of forwards: the event loop and the decode threads come first.
_NICE = 5
_MOST_FILES = 16
# Time between the end of a child's socket and the end of its process.
_DYING_S = 1.0
# A reply without pixels.
_MOST_ANSWER_BYTES = 2**16
# Errors from reading a malformed reply.
_BAD_ANSWERS = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
# The only environment variables that the child gets, because the environment contains API keys.
_PASSED_ON = ("LD_LIBRARY_PATH", "TZ", "LANG")


Result = TypeVar("Result")


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection


class DecoderProcess:
    """A child that decodes one image at a time, for one thread at a time. It is started on first use, and again after
    it has died."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    def decode(
        self,
        encoded: bytes,
        predicted: DecodeCost,
        consume: Callable[[Strips], Result],
        *,
        enough: int | None,
        jpeg_reader: JpegReader = "either",
    ) -> Result:
        """Return what `consume` makes of the picture in `encoded`: it gets what decode.decode_strips returns, and reads
        all strips.

        Raises UndecodableImageError, also if the decoder crashed, TooCostlyError if it took more than the prediction,
        and OSError if no process can be started.
        """
        wanted = {
            "enough": enough,
            "jpeg_reader": jpeg_reader,
            "seconds": ceil(_CPU_FACTOR * predicted.seconds) + _SPARE_CPU_S,
            "bytes": predicted.memory_bytes + predicted.memory_bytes // _MEMORY_SHARE + _SPARE_BYTES,
        }
        child = self._child
        if child is None or child.process.poll() is not None:
            self.close()
            child = self._child = _start(self._limits)
        try:
            with _killed_if_it_hangs(child, max(_LEAST_WALL_S, _WALL_FACTOR * self._limits.max_decode_seconds)):
                with self._failures_reported(child, encoded):
                    picture = self._ask(child.connection, encoded, wanted)
                return consume(picture._replace(strips=self._received(child, encoded, picture)))
        except ImageError:
            # The child waits for the next image, or has been ended.
            raise
        except BaseException:
            # Otherwise the rest of this reply would be read as the next one.
            self.close()
            raise

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.connection.close()
            child.process.kill()
            child.process.wait()

    def _ask(self, connection: Connection, encoded: bytes, wanted: Mapping[str, object]) -> Strips:
        """Return the head of the reply, without strips."""
        connection.send_bytes(json.dumps(wanted).encode())
        connection.send_bytes(encoded)
        answer = json.loads(connection.recv_bytes(_MOST_ANSWER_BYTES))
        if answer.get("out_of_memory"):
            raise self._too_costly(encoded)
        if "reason" in answer:
            raise UndecodableImageError(format_of(encoded), str(answer["reason"]))
        height, width, orientation = (int(answer[key]) for key in ("height", "width", "orientation"))
        if min(height, width) < 1 or height * width > self._limits.max_pixels:
            raise ValueError("the decoder answered with a picture of another size")
        conversion = None if answer["conversion"] is None else Conversion.of(answer["conversion"])
        reduction = None if answer["reduction"] is None else Reduction(*map(int, answer["reduction"]))
        if reduction is not None and min(reduction) < 1:
            raise ValueError("the decoder answered with a picture without pixels")
        return Strips(height, width, orientation, iter(()), conversion, reduction)

    def _received(self, child: _Child, encoded: bytes, picture: Strips) -> Iterator[Pixels]:
        rows = picture.height
        while rows > 0:
            with self._failures_reported(child, encoded):
                # Bounded: recv_bytes would otherwise allocate what a compromised decoder says.
                received = np.frombuffer(child.connection.recv_bytes(rows * picture.width * 3), np.uint8)
                # A copy, because PyTorch needs an array that can be written to.
                strip = received.reshape(-1, picture.width, 3).copy()
                if not len(strip):
                    raise ValueError("the decoder answered with an empty strip")
                rows -= len(strip)
                # Otherwise it would be in memory beside the strip until the next one.
                del received
            yield strip

    @contextmanager
    def _failures_reported(self, child: _Child, encoded: bytes) -> Iterator[None]:
        try:
            yield
        except ImageError:
            raise
        except _BAD_ANSWERS as error:
            raise self._failure(child, encoded) from error

    def _failure(self, child: _Child, encoded: bytes) -> ImageError:
        """End a child that has not answered as it should, and return the error of its image."""
        try:
            status = child.process.wait(_DYING_S)
        except subprocess.TimeoutExpired:
            status = None
        self.close()
        image_format = format_of(encoded)
        _log.warning("a decoder process ended with status %s at a %s image; another is started", status, image_format)
        if status in {-signal.SIGXCPU, -signal.SIGKILL}:
            return self._too_costly(encoded)
        return UndecodableImageError(image_format, "its decoder crashed")

    def _too_costly(self, encoded: bytes) -> TooCostlyError:
        limits = self._limits
        return TooCostlyError(
            format_of(encoded),
            f"its decoder needed more than {limits.max_decode_seconds:g} s of CPU time or "
            f"{limits.max_decode_bytes / 1e6:.0f} MB of memory",
        )


def _start(limits: ImageLimits) -> _Child:
    ours, its = socket.socketpair()
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # libheif decodes in a thread, whose own arena of glibc would take 64 MiB of the address space.
        "MALLOC_ARENA_MAX": "1",
    }
    try:
        with its:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, and no word of a request
                [sys.executable, "-S", "-P", "-m", __spec__.name, str(its.fileno()), json.dumps(astuple(limits))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env=environment,
                # Ctrl-C in a terminal must only reach the parent, which still waits for replies.
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return _Child(process, Connection(ours.detach()))


@contextmanager
def _killed_if_it_hangs(child: _Child, seconds: float) -> Iterator[None]:
    watchdog = threading.Timer(seconds, child.process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def main() -> None:
    """Decode for the parent until it closes the socket. Arguments: its descriptor, and ImageLimits as JSON."""
    # Only the parent ends the child: a signal to all processes must not lose replies that are still due.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    limits = ImageLimits(*json.loads(sys.argv[2]))
    os.nice(_NICE)
    for kind, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _MOST_FILES)):
        _limit(kind, value, for_good=True)
    ignore_pillow_warnings()
    # The size of the address space.
    own_bytes = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    with Connection(int(sys.argv[1])) as connection, suppress(EOFError, ConnectionError):
        while True:
            _decode_next(connection, limits, own_bytes)


def _decode_next(connection: Connection, limits: ImageLimits, own_bytes: int) -> None:
    wanted = json.loads(connection.recv_bytes())
    encoded = connection.recv_bytes()
    # At its CPU seconds the kernel sends SIGXCPU, which ends the process.
    _limit(resource.RLIMIT_CPU, ceil(process_time()) + wanted["seconds"])
    _limit(resource.RLIMIT_AS, own_bytes + len(encoded) + wanted["bytes"])
    try:
        decoded = decode_strips(encoded, limits, enough=wanted["enough"], jpeg_reader=wanted["jpeg_reader"])
        first = next(decoded.strips)
    except ImageError as error:
        reason = error.reason if isinstance(error, UndecodableImageError) else str(error).rstrip(".")
        _answer(connection, out_of_memory=isinstance(error.__cause__, MemoryError), reason=reason)
        return
    _answer(
        connection,
        height=decoded.height,
        width=decoded.width,
        orientation=decoded.orientation,
        conversion=None if decoded.conversion is None else decoded.conversion.as_numbers(),
        reduction=decoded.reduction,
    )
    connection.send_bytes(first.reshape(-1).data)
    # An error from here on ends this process, because no error can be sent among pixels.
    for strip in decoded.strips:
        connection.send_bytes(strip.reshape(-1).data)


def _answer(connection: Connection, **facts: object) -> None:
    connection.send_bytes(json.dumps(facts).encode())


def _limit(kind: int, value: int, *, for_good: bool = False) -> None:
    """Set a limit of this process, which it cannot raise again if it is `for_good`."""
    _, hard = resource.getrlimit(kind)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bound, bound if for_good else hard))


if __name__ == "__main__":
    main()
