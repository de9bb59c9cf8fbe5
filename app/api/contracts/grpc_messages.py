"""What is read of gRPC calls. Messages are made from the compiled description of open_inference.proto and health.proto.

They are in a pool of their own: the default one would refuse messages of the same names, which a client in the same
process has. There is no generated code, which would need one version of protobuf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from app.http.problems import BodyTooLargeError, InvalidInputError, SlowBodyError

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

_COMPILED = Path(__file__).with_name("open_inference.binpb")

# Typed contents, and the numbers in them: a number takes a byte or more of the message, 8 bytes once it is parsed. The
# parser holds the interpreter lock, for 10 to 60 ms at these limits.
_MAX_TYPED_BYTES = 16 * 2**20
_MAX_NUMBERS_BYTES = 8 * 2**20
_NUMBER_BYTES = 8
# Fields of a request, of its inputs and of their contents: each takes time on the event loop, also an empty one. A
# request has some for each image.
_MAX_FIELDS = 2048
# What a message has besides images: names, shapes and parameters.
MAX_HEAD_BYTES = 64 * 1024

# Kinds of fields, and keys of fields: their number and their kind (https://protobuf.dev/programming-guides/encoding).
_VARINT, _64_BITS, _BYTES, _32_BITS = 0, 1, 2, 5
_FIXED = {_64_BITS: 8, _32_BITS: 4}
_MAX_VARINT_BYTES = 10
_RAW_INPUTS = 7 << 3 | _BYTES
_INPUTS = 5 << 3 | _BYTES
_CONTENTS = 5 << 3 | _BYTES
_FILES = 8 << 3 | _BYTES


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service, and the classes of its messages."""

    name: str
    path: str
    request: Any
    response: Any


def _described() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(_COMPILED.read_bytes()).file:
        pool.Add(file)
    return pool


_POOL = _described()


def methods_of(service: str) -> Sequence[Method]:
    """Return the methods of a service."""
    return [
        Method(
            method.name,
            f"/{service}/{method.name}",
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )
        for method in _POOL.FindServiceByName(service).methods
    ]


async def received(context: Any, timeout_s: float) -> bytes:
    """Return the only message of a call, as it was sent. Its handler is that of a stream: gRPC would read the message
    of a unary call before it calls the handler, without a limit of time.

    Raises SlowBodyError, InvalidInputError without a message.
    """
    try:
        async with asyncio.timeout(timeout_s):
            message = await context.read()
    except TimeoutError:
        raise SlowBodyError(timeout_s) from None
    if message is grpc.aio.EOF:
        raise InvalidInputError("The call has no message.")
    return bytes(message)


def client_of(peer: str) -> tuple[str, int] | None:
    """Return address and port of gRPC's name of a client, such as `ipv6:[::1]:4711`; None if it has none."""
    family, _, place = unquote(peer).partition(":")
    host, _, port = place.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def parse(kind: Any, message: bytes | bytearray) -> Any:
    """Return `message` as a message of the class `kind`. Raises InvalidInputError."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidInputError("The message cannot be read.") from None


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """A ModelInferRequest without its raw inputs, and these, as views of it. `parsed_bytes` is the memory that the rest
    takes at most once it is parsed and read."""

    rest: bytes
    raw_inputs: Sequence[memoryview]
    parsed_bytes: int


def split_request(message: bytes | bytearray) -> SplitRequest:
    """Take the raw inputs out of a ModelInferRequest: protobuf would copy them twice.

    Raises InvalidInputError, also for more than MAX_HEAD_BYTES besides images, and BodyTooLargeError for typed contents
    that are too large.
    """
    raw: list[memoryview] = []
    rest: list[memoryview] = []
    numbers = files = 0
    fields = _Fields()
    for key, whole, content in fields.of(memoryview(message)):
        if key == _RAW_INPUTS:
            raw.append(content)
            continue
        rest.append(whole)
        for inner, inner_whole, inner_content in fields.of(content) if key == _INPUTS else ():
            if inner == _CONTENTS:
                of_files = sum(len(each) for kind, each, _ in fields.of(inner_content) if kind == _FILES)
                files += of_files
                numbers += len(inner_whole) - of_files
    for size, limit in ((numbers, _MAX_NUMBERS_BYTES), (numbers + files, _MAX_TYPED_BYTES)):
        if size > limit:
            raise BodyTooLargeError(limit, "Send tensors in raw_input_contents.")
    if sum(map(len, rest)) - numbers - files > MAX_HEAD_BYTES:
        raise InvalidInputError(f"The message has more than {MAX_HEAD_BYTES} bytes besides images.")
    joined = b"".join(rest)
    return SplitRequest(joined, raw, 2 * len(joined) + _NUMBER_BYTES * numbers)


class _Fields:
    """Finds the fields of messages, of one request: together at most _MAX_FIELDS."""

    def __init__(self) -> None:
        self._found = 0

    def of(self, message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
        """Yield key, bytes and content of each field of a message. Raises InvalidInputError."""
        end = 0
        while end < len(message):
            start = end
            self._found += 1
            key, at = _varint(message, start)
            kind = key & 7
            if kind == _BYTES:
                size, at = _varint(message, at)
                end = at + size
            elif kind == _VARINT:
                _, end = _varint(message, at)
            elif kind in _FIXED:
                end = at + _FIXED[kind]
            else:
                end = len(message) + 1
            if end > len(message) or self._found > _MAX_FIELDS:
                raise InvalidInputError(f"The message cannot be read, or has more than {_MAX_FIELDS} fields.")
            yield key, message[start:end], message[at:end]


def _varint(message: memoryview, start: int) -> tuple[int, int]:
    """Return the number that begins at `start`, and where it ends. Raises InvalidInputError."""
    number = 0
    for position, byte in enumerate(message[start : start + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * position
        if byte < 0x80:  # noqa: PLR2004 - the highest bit says that another byte follows
            return number, start + position + 1
    raise InvalidInputError("The message cannot be read.")
