"""Read the chunks of a PNG (PNG specification, third edition): Pillow gets only what its pixels need, and the cost of a
decode is predicted.

Pillow refuses a file for a wrong checksum of a comment, and for metadata that unpack to more than 1 MiB. libpng, and
so every browser, ignores both. Pillow also compares the transparent colour of tRNS with samples that it has scaled to
eight bits; to_rgb.py compares the original ones.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from models.images.colour import DIRECTORY_BYTES, has_tables
from models.images.costs import Picture
from models.interface.errors import UndecodableImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_DEPTHS = {_GREY: {1, 2, 4, 8, 16}, _RGB: {8, 16}, _PALETTE: {1, 2, 4, 8}, _GREY_ALPHA: {8, 16}, _RGBA: {8, 16}}
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}

_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
_IHDR = struct.Struct(">IIBBBBB")
_IHDR_BYTES = 13
_LARGEST_CHUNK = 2**31 - 1
# Encoders write chunks of 8 kB and more: a PNG of 20 MB has 2500. A decoder process reads up to the second number,
# which takes it 50 ms; the service counts up to the first.
_COUNTED_CHUNKS = 4_000
_MOST_CHUNKS = 100_000
# Of one profile or text, packed and unpacked, and of Exif data as text. XMP and the profiles that are converted are far
# smaller.
_MOST_UNPACKED_BYTES = 2**20
_MOST_PACKED_DIRECTORY = 64 * 1024
_XMP = b"XML:com.adobe.xmp"
# Exif data that ImageMagick writes as text: a name, a length, then hexadecimal digits.
_EXIF_AS_TEXT = b"Raw profile type exif"
_BEHIND_PIXELS = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})
_INTERPRETED = frozenset({b"tRNS", b"iCCP"}) | _BEHIND_PIXELS
# Read without unpacking: eXIf has offsets, and some programs write megabytes of XMP.
_UNLIMITED = frozenset({b"eXIf", b"iTXt"})
# Nanoseconds of zlib and Pillow's filters for each byte of the unpacked rows, and to read a chunk. Nanoseconds for each
# byte unpacked from metadata, and the memory for it, with Exif data as hexadecimal text.
_BYTE_NS = 9.0
_CHUNK_NS = 500.0
_UNPACKED_BYTE_NS = 12.0
# Nanoseconds of zlib for each byte of blocks that unpack to nothing.
_EMPTY_BLOCK_BYTE_NS = 100.0
_SPARE_PACKED_BYTES = 64 * 1024
_BYTES_FOR_UNPACKED_BYTE = 4
_INTERLACED_FACTOR = 2.0
_BYTE_BITS = 8


@dataclass(slots=True)
class Png:
    """The header of a PNG, and its chunks as far as they were counted: their number, and whether these were all.
    `palette`, `transparency`, `exif`: contents of PLTE, tRNS and eXIf. `packed_profile`: content of iCCP, and `texts`:
    contents of the text chunks with XMP and Exif data, by kind of chunk. `pixels`: where those of IDAT are."""

    width: int
    height: int
    depth: int
    colours: int
    interlaced: bool
    number: int = 0
    complete: bool = True
    palette: bytes = b""
    transparency: bytes = b""
    packed_profile: bytes = b""
    exif: bytes = b""
    texts: list[tuple[bytes, bytes]] = field(default_factory=list)
    pixels: list[tuple[int, int]] = field(default_factory=list)

    @property
    def unpacked_bytes(self) -> int:
        """Upper bound of what its metadata unpack to."""
        return _MOST_UNPACKED_BYTES * (bool(self.packed_profile) + sum(kind != b"tEXt" for kind, _ in self.texts))

    @property
    def transparent_colour(self) -> tuple[int, ...] | None:
        """The samples of the colour that tRNS makes transparent, of `depth` bits each; None if there is none."""
        channels = _CHANNELS[self.colours]
        if self.colours not in {_GREY, _RGB} or len(self.transparency) < 2 * channels:
            return None
        # A decoder ignores the bits above the depth (section 11.3.2.1).
        return tuple(
            sample & (1 << self.depth) - 1 for sample in struct.unpack_from(f">{channels}H", self.transparency)
        )

    @property
    def profile(self) -> bytes:
        """The ICC profile; empty if there is none, if it is damaged or if it has more than _MOST_UNPACKED_BYTES."""
        return _unpacked(self._profile_stream)

    @property
    def has_tables(self) -> bool:
        """Whether its colours are converted by a profile made of tables, of which only the beginning is unpacked."""
        coloured = self.colours in {_RGB, _PALETTE, _RGBA}
        begins = self._profile_stream[:_MOST_PACKED_DIRECTORY]
        return coloured and has_tables(_unpacked(begins, DIRECTORY_BYTES, whole=False))

    @property
    def _profile_stream(self) -> bytes:
        _, _, packed = self.packed_profile.partition(b"\0")
        return packed[1:] if packed[:1] == b"\0" else b""

    @property
    def xmp(self) -> bytes:
        """The XMP packet, as text in UTF-8; empty if there is none."""
        return next((_international_text(body) for kind, body in self.texts if kind == b"iTXt"), b"")

    @property
    def exif_as_text(self) -> bytes:
        """Exif data in a text chunk; empty if there are none."""
        for kind, body in self.texts:
            if kind != b"iTXt":
                _, _, text = body.partition(b"\0")
                digits = (_unpacked(text[1:]) if kind == b"zTXt" else text).split(b"\n", 3)[3:]
                try:
                    # It skips white space.
                    return bytes.fromhex(b"".join(digits).decode("ascii"))
                except ValueError:
                    continue
        return b""

    def reduced(self, encoded: bytes) -> bytes:
        """Return a PNG with the same header and pixels: those of `encoded`, which this was read from."""
        header = _IHDR.pack(self.width, self.height, self.depth, self.colours, 0, 0, self.interlaced)
        parts = [_SIGNATURE, _chunk(b"IHDR", header)]
        if self.colours == _PALETTE:
            parts.append(_chunk(b"PLTE", self.palette))
            parts += [_chunk(b"tRNS", self.transparency)] if self.transparency else []
        parts.append(_CHUNK.pack(sum(end - start for start, end in self.pixels), b"IDAT"))
        view = memoryview(encoded)
        # Pillow does not read the checksum of pixels.
        return b"".join([*parts, *(view[start:end] for start, end in self.pixels), bytes(4), _chunk(b"IEND", b"")])


def read_png(encoded: bytes, most_chunks: int = _MOST_CHUNKS) -> Png:
    """Read the header and up to `most_chunks` chunks. Chunks that a picture can do without are ignored where their
    checksum is wrong, as libpng does. Raises UndecodableImageError, and struct.error if the header is cut off."""
    png = _header(encoded)
    at = len(_SIGNATURE)
    while at + _CHUNK.size <= len(encoded):
        if png.number == most_chunks:
            png.complete = False
            break
        length, kind = _CHUNK.unpack_from(encoded, at)
        start = at + _CHUNK.size
        end = start + length
        if length > _LARGEST_CHUNK or kind == b"IEND":
            break
        png.number += 1
        if kind == b"IDAT":
            png.pixels.append((start, min(end, len(encoded))))
        elif kind == b"IHDR":
            _refuse_if(png.number > 1, "it has two headers")
        elif kind == b"PLTE":
            _take_palette(png, encoded, at, end)
        elif (
            kind in _INTERPRETED
            and (length <= _MOST_UNPACKED_BYTES or kind in _UNLIMITED)
            and _is_whole(encoded, at, end)
        ):
            _take(png, kind, encoded[start:end])
        at = end + _CHECKSUM_BYTES
    _refuse_if(png.colours == _PALETTE and not png.palette, "it has no palette")
    return png


def cost(encoded: bytes, _enough: int) -> Picture:
    """Of a PNG."""
    read = read_png(encoded, _COUNTED_CHUNKS)
    pixels = read.width * read.height
    row_bytes = -(-read.width * _CHANNELS[read.colours] * read.depth // 8) + 1
    deep = read.depth > _BYTE_BITS
    # Grey and palettes have one byte a pixel in Pillow, two with sixteen bits; everything else has four.
    stored = (2 if deep else 1) if read.colours in {_GREY, _PALETTE} else 4
    # The samples of sixteen bits that a transparent colour is compared with take a second decode.
    decodes = 2 if deep and read.colours == _RGB and read.transparency else 1
    ns = decodes * row_bytes * read.height * _BYTE_NS * (_INTERLACED_FACTOR if read.interlaced else 1.0)
    ns += (read.number if read.complete else _MOST_CHUNKS) * _CHUNK_NS
    ns += read.unpacked_bytes * _UNPACKED_BYTE_NS + len(read.packed_profile) * _EMPTY_BLOCK_BYTE_NS
    # Packed rows are hardly ever larger than the rows, unless they have blocks without contents.
    packed = sum(end - start for start, end in read.pixels)
    ns += max(0, packed - 2 * row_bytes * read.height - _SPARE_PACKED_BYTES) * _EMPTY_BLOCK_BYTE_NS
    return Picture(
        read.width,
        read.height,
        ns,
        # Pillow gets a copy of the file.
        decodes * pixels * stored + 4 * row_bytes + len(encoded) + read.unpacked_bytes * _BYTES_FOR_UNPACKED_BYTE,
        # Only a decoder process enforces the prediction.
        ordinary=not deep and read.complete,
        profile=bool(read.packed_profile),
        tables=read.has_tables,
    )


def _header(encoded: bytes) -> Png:
    _refuse_if(not encoded.startswith(_SIGNATURE), "its signature is damaged, as by a conversion of line endings")
    at = len(_SIGNATURE)
    length, first = _CHUNK.unpack_from(encoded, at)
    _refuse_if(first != b"IHDR" or length != _IHDR_BYTES, "it does not begin with its header")
    width, height, depth, colours, compression, filtering, interlaced = _IHDR.unpack_from(encoded, at + _CHUNK.size)
    _refuse_if(not _is_whole(encoded, at, at + _CHUNK.size + length), "the checksum of its header is wrong")
    _refuse_if(depth not in _DEPTHS.get(colours, ()), f"it has an unknown colour type, {colours} with {depth} bits")
    _refuse_if(bool(compression or filtering or interlaced > 1), "its pixels are coded in an unknown way")
    return Png(width, height, depth, colours, bool(interlaced))


def _take_palette(png: Png, encoded: bytes, at: int, end: int) -> None:
    if png.colours == _PALETTE and not png.palette:
        _refuse_if(not _is_whole(encoded, at, end), "the checksum of its palette is wrong")
        png.palette = encoded[at + _CHUNK.size : end]


def _take(png: Png, kind: bytes, body: bytes) -> None:
    """Keep the first chunk of a kind, and not behind the pixels where that is no place for it."""
    if png.pixels and kind not in _BEHIND_PIXELS:
        return
    if kind == b"tRNS":
        png.transparency = png.transparency or body
    elif kind == b"iCCP":
        png.packed_profile = png.packed_profile or body
    elif kind == b"eXIf":
        png.exif = png.exif or body
    else:
        keyword = _XMP if kind == b"iTXt" else _EXIF_AS_TEXT
        if body.startswith(keyword + b"\0") and all(kind != each for each, _ in png.texts):
            png.texts.append((kind, body))


def _is_whole(encoded: bytes, at: int, end: int) -> bool:
    """Whether the chunk at `at`, whose content ends at `end`, is in the file and has the right checksum."""
    checksum = encoded[end : end + _CHECKSUM_BYTES]
    return len(checksum) == _CHECKSUM_BYTES and zlib.crc32(memoryview(encoded)[at + 4 : end]) == int.from_bytes(
        checksum
    )


def _international_text(body: bytes) -> bytes:
    """Return the text of an iTXt chunk: keyword, flag and method of compression, language, translated keyword, text."""
    _, _, rest = body.partition(b"\0")
    _, _, rest = rest[2:].partition(b"\0")
    _, _, text = rest.partition(b"\0")
    return _unpacked(text) if body.partition(b"\0")[2][:1] == b"\1" else text


def _unpacked(packed: bytes, most_bytes: int = _MOST_UNPACKED_BYTES, *, whole: bool = True) -> bytes:
    """Return what `packed` unpacks to, or its beginning; empty if it is damaged, or is to be `whole` and has more."""
    if len(packed) > _MOST_UNPACKED_BYTES:
        return b""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, most_bytes)
    except zlib.error:
        return b""
    return b"" if whole and unpacker.unconsumed_tail else unpacked


def _chunk(kind: bytes, body: bytes) -> bytes:
    return _CHUNK.pack(len(body), kind) + body + zlib.crc32(kind + body).to_bytes(_CHECKSUM_BYTES)


def _refuse_if(unreadable: bool, reason: str) -> None:  # noqa: FBT001 - a condition, as of assert
    if unreadable:
        raise UndecodableImageError("PNG", reason)
