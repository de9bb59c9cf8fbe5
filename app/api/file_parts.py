"""Parse the files of a multipart/form-data body (RFC 7578) while it is received."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.http.problems import MalformedMultipartError, NoImagesError, TooManyImagesError
from models.images.formats import SIGNATURE_BYTES, is_image
from models.interface.errors import ImageTooLargeError

# Form fields that are not files are ignored, up to this number.
_MAX_FIELDS = 16

# The parser takes up to a microsecond for each byte of these: spaces after a boundary, boundaries within a part, and
# spaces before the value of a header. No client sends the first two, which RFC 2046, section 5.1.1, forbids; only mail
# servers may add spaces.
PIECE_BYTES = 16 * 1024

_BLANKS = (b" ", b"\t")

# The parameters of a Content-Disposition header. A quoted string is one value, even if it contains a semicolon.
_PARAMETER = re.compile(rb""";\s*([^\s;="]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)""")
# charset'language'percent-encoded (RFC 8187, section 3.2).
_EXTENDED = re.compile(rb"([A-Za-z0-9!#$%&+^_`{}~-]+)'[^']*'(.*)", re.DOTALL)
_MAX_NAME_CHARACTERS = 100


@dataclass(slots=True)
class _Part:
    """A part of the body. `is_file` is None until its headers or its first bytes show whether it is a file."""

    name: str | None
    is_file: bool | None
    size: int = 0
    content: bytearray = field(default_factory=bytearray)


class FileParts:
    """Collects the files of a body that is fed in chunks: parts with a file name, or with the signature of an image.

    With `every_part` each part is a file. A file larger than `max_file_bytes` is replaced by its error. Give `feed` at
    most PIECE_BYTES at once, for which it takes up to 16 ms. `feed` and `files` raise MalformedMultipartError,
    TooManyImagesError, NoImagesError. Call `close` at the end.
    """

    def __init__(self, boundary: bytes, *, max_files: int, max_file_bytes: int, every_part: bool = False) -> None:
        self._every_part = every_part
        self._max_files = max_files
        self._max_file_bytes = max_file_bytes
        self._files: list[_Part] = []
        self._fields = 0
        # None while a field is received.
        self._part: _Part | None = None
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._ended = False
        self._delimiter = b"\r\n--" + boundary
        self._delimiters = 0
        # The end of the last piece, which may be the beginning of a delimiter.
        self._tail = b""
        if not boundary:
            raise MalformedMultipartError("its Content-Type has no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedMultipartError(str(error)) from error

    def feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MalformedMultipartError(str(error)) from error
        joined = self._tail + piece
        if any(self._delimiter + blank in joined for blank in _BLANKS):
            raise MalformedMultipartError("it has spaces after a boundary")
        self._tail = joined[-len(self._delimiter) :]
        self._delimiters += joined.count(self._delimiter) - self._tail.count(self._delimiter)
        # Two more: the first may follow an empty line, and the last ends the body.
        if self._delimiters > self._max_files + _MAX_FIELDS + 2:
            raise MalformedMultipartError("it has more boundaries than parts")

    def files(self) -> Sequence[bytes | ImageTooLargeError]:
        """Return the files. Call it after the whole body has been fed."""
        if not self._ended:
            raise MalformedMultipartError("it ends before its last boundary")
        if not self._files:
            raise NoImagesError
        return [
            ImageTooLargeError(self._max_file_bytes, name=file.name, size_bytes=file.size)
            if file.size > self._max_file_bytes
            else bytes(file.content)
            for file in self._files
        ]

    def close(self) -> None:
        """Break the reference cycle with the parser, which would keep the files alive."""
        self._parser.callbacks = {}

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, chunk: bytes, start: int, end: int) -> None:
        self._header_name += chunk[start:end]

    def _on_header_value(self, chunk: bytes, start: int, end: int) -> None:
        self._header_value += chunk[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        names = dict(_file_names(self._disposition))
        # `filename*` takes precedence (RFC 6266, section 4.3).
        name = names.get(b"filename*", names.get(b"filename"))
        is_file = True if names or self._every_part else None
        self._part = _Part(name, is_file)
        if is_file:
            self._add(self._part)

    def _on_part_data(self, chunk: bytes, start: int, end: int) -> None:
        part = self._part
        if part is None:
            return
        part.size += end - start
        if part.is_file and part.size > self._max_file_bytes:
            part.content.clear()
            return
        part.content += chunk[start:end]
        if part.is_file is None and part.size >= SIGNATURE_BYTES:
            self._decide(part)

    def _on_part_end(self) -> None:
        if self._part is not None and self._part.is_file is None:
            self._decide(self._part)

    def _on_end(self) -> None:
        self._ended = True

    def _decide(self, part: _Part) -> None:
        if is_image(part.content):
            part.is_file = True
            self._add(part)
            return
        self._part = None
        self._fields += 1
        if self._fields > _MAX_FIELDS:
            raise MalformedMultipartError(f"it has more than {_MAX_FIELDS} fields that are not files")

    def _add(self, part: _Part) -> None:
        if len(self._files) == self._max_files:
            raise TooManyImagesError(self._max_files)
        self._files.append(part)


def _file_names(disposition: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield the file names in a Content-Disposition header, with their parameter: `filename` or `filename*`."""
    for parameter, raw in _PARAMETER.findall(disposition):
        lowered = parameter.lower()
        value = raw.strip()
        if value.startswith(b'"'):
            value = re.sub(rb"\\(.)", rb"\1", value[1:].removesuffix(b'"'))
        if lowered == b"filename":
            yield lowered, _readable(value, "utf-8")
        elif lowered.startswith(b"filename*"):
            extended = _EXTENDED.fullmatch(value)
            charset, encoded = extended.groups() if extended else (b"", value)
            # RFC 5987 allowed ISO-8859-1 and UTF-8, RFC 8187 only UTF-8. Other charsets are read as UTF-8.
            latin = charset.lower() == b"iso-8859-1"
            yield b"filename*", _readable(unquote_to_bytes(encoded), "latin-1" if latin else "utf-8")


def _readable(name: bytes, charset: str) -> str:
    text = name.decode(charset, "replace")
    return "".join(each if each.isprintable() else "?" for each in text[:_MAX_NAME_CHARACTERS])
