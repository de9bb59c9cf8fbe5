"""Read by Pillow what libjpeg-turbo's own interface does not: open a file, and turn any mode into RGB.

Pillow gets no metadata that its readers would stumble over, one thread for each decode, and a limited number of reads.
tests/integration/models/images/test_format_table.py holds each mode, depth, layout and byte order to other decoders.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile, ImagePalette, TiffImagePlugin

from models.images import colour
from models.images.bmp_runs import RunsDecoder
from models.images.colour import Conversion, Pixels
from models.images.format_costs import BMP_OS2_HEADER
from models.images.formats import known_format
from models.images.gif_blocks import read_gif
from models.images.headers import read_tiff_numbers
from models.images.heif_boxes import read_heif
from models.images.png_chunks import Png, read_png
from models.interface.errors import UndecodableImageError

_LARGEST_16_BIT = 65535
_LARGEST_8_BIT = 255

# Tags of a TIFF, and a value of the second (TIFF 6.0, section 8). Pillow assumes that value where the tag is missing.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC_INTERPRETATION = 262
_SAMPLES_PER_PIXEL = 277
_COLOUR_MAP = 320
_WHITE_IS_ZERO = 0

# Pixels converted at once. Conversions copy their input; strips avoid a second copy of a large image.
_STRIP_PIXELS = 500_000

# Calls of `read` until width and height are known. The pixels may take as many again, or one for each _BYTES_OF_A_READ
# of the file in addition.
_MOST_HEADER_READS = 4_000
_BYTES_OF_A_READ = 64
_MOST_BYTES_READ = 2**31

# Modes whose colours an ICC profile of RGB describes.
_COLOURED = frozenset({"RGB", "RGBA", "P", "PA"})

# Exceptions of Pillow's readers for damaged files.
_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    # The readers of AVIF and HEIC.
    RuntimeError,
    zlib.error,
    # The GIF and WebP readers apply Pillow's process-wide limit themselves.
    Image.DecompressionBombError,
)

# Import Pillow's readers now, and not during the first request.
Image.init()
Image.register_decoder("bmp_rle", RunsDecoder)
# libtiff reads planes of 16 bits rightly, and Pillow's own reader of uncompressed TIFFs does not.
TiffImagePlugin.READ_LIBTIFF = True
# Kinds that it reads, and that the plugin lacks: grey of 16 bits from white, and of 12, in the other byte order.
TiffImagePlugin.OPEN_INFO[TiffImagePlugin.MM, 0, (1,), 1, (16,), ()] = "I;16B", "I;16B"
TiffImagePlugin.OPEN_INFO[TiffImagePlugin.MM, 1, (1,), 1, (12,), ()] = "I;16", "I;12"
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
if find_spec("pillow_heif"):
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


class Opened(NamedTuple):
    """An image that Pillow has opened, and what its header says: Exif data and XMP, the conversion to sRGB, and the
    part that the file has pixels for: left, top, right, bottom. `png`: the chunks of a PNG, with `again` to open it a
    second time."""

    image: Image.Image
    exif: bytes
    xmp: bytes
    conversion: Conversion | None
    box: tuple[int, int, int, int] | None = None
    png: Png | None = None
    again: Callable[[], ImageFile.ImageFile] | None = None


def open_image(encoded: bytes) -> Opened:
    """Raises EmptyImageError, UnsupportedFormatError, UndecodableImageError."""
    image_format = known_format(encoded).name
    with undecodable(image_format):
        match image_format:
            case "PNG":
                return _open_png(encoded)
            case "GIF":
                gif = read_gif(encoded)
                return Opened(_read("GIF", BytesIO(gif.reduced(encoded))), b"", b"", None, gif.box)
            case "JPEG":
                # headers.py counts the segments of a JPEG.
                image: Image.Image = _read("JPEG", BytesIO(encoded))
            case "TIFF":
                image = _open_tiff(encoded)
            case "BMP":
                image = _read("BMP", BytesIO(encoded))
                _unify_bmp_palette(image, encoded)
            case _:
                image = _read(image_format, _MeteredFile(encoded))
        info = image.info
        xmp = info.get("xmp") or b""
        return Opened(
            image,
            info.get("exif") or b"",
            xmp if isinstance(xmp, bytes) else xmp.encode(),
            _conversion(image, encoded, image_format),
        )


@contextmanager
def undecodable(image_format: str | None) -> Iterator[None]:
    """Turn errors of Pillow's readers into UndecodableImageError."""
    try:
        yield
    except struct.error as error:
        raise UndecodableImageError(image_format, "its header is damaged") from error
    except _DECODE_ERRORS as error:
        raise UndecodableImageError(image_format, str(error).strip().rstrip(".") or type(error).__name__) from error


def strips(opened: Opened, image_format: str | None) -> Iterator[Pixels]:
    """Yield the loaded picture in strips of rows, (rows, width, 3) uint8 RGB each."""
    image = opened.image
    with undecodable(image_format):
        if image_format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
            # Programs that write a mask for alpha and leave the bytes empty mean an opaque picture, as browsers know.
            image = image.convert("RGB")
        if image.mode.startswith("I"):
            convert = _from_16_bit(opened)
        elif opened.png is not None and opened.png.transparent_colour is not None:
            convert = _over_white_but(opened)
        else:
            convert = _over_white
        rows = max(1, _STRIP_PIXELS // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            whole = rows >= image.height
            pixels = convert(image if whole else image.crop((0, top, image.width, bottom)), top)
            if opened.box is not None:
                _whiten_outside(pixels, top, opened.box)
            yield pixels


def _read(image_format: str, file: BytesIO) -> ImageFile.ImageFile:
    # Not Image.open, which applies Pillow's process-wide size limit; ImageLimits decides here.
    reader, _ = Image.OPEN[image_format]
    image = reader(file, "")
    if isinstance(file, _MeteredFile):
        file.grant_pixels()
    return image


def _open_png(encoded: bytes) -> Opened:
    png = read_png(encoded)
    if not png.complete:
        raise UndecodableImageError("PNG", "it consists of too many pieces")
    reduced = png.reduced(encoded)
    image = _read("PNG", BytesIO(reduced))
    conversion = colour.from_profile(png.profile) if image.mode in _COLOURED else None
    return Opened(
        image,
        png.exif or png.exif_as_text,
        png.xmp,
        conversion,
        png=png,
        again=lambda: _read("PNG", BytesIO(reduced)),
    )


def _open_tiff(encoded: bytes) -> ImageFile.ImageFile:
    try:
        image = _read("TIFF", _MeteredFile(encoded))
    except SyntaxError as error:
        if str(error) != "unknown pixel mode":
            raise
        known = _PHOTOMETRIC_INTERPRETATION, _SAMPLES_PER_PIXEL, _BITS_PER_SAMPLE
        tags = read_tiff_numbers(encoded, known)
        photometric, samples, bits = (tags.get(tag, default) for tag, default in zip(known, (0, 1, 1), strict=True))
        raise UndecodableImageError(
            "TIFF",
            f"its pixels are stored in a way that is not read: {samples} samples of {bits} bits, "
            f"photometric interpretation {photometric}",
        ) from error
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP, ())
    if image.mode in {"P", "PA"} and max(colours) <= _LARGEST_8_BIT:
        # Some programs write colours of 8 bits where the format has 16.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return image


def _unify_bmp_palette(image: Image.Image, encoded: bytes) -> None:
    """Read the pixels of a BMP as palette indices where Pillow would not: it takes a palette of black and white for one
    bit a pixel, and one of grey levels for eight, whatever the file has."""
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    bits = encoded[24 if header_bytes == BMP_OS2_HEADER else 28]
    if (
        image.mode not in {"1", "L"}
        or bits == {"1": 1, "L": 8}[image.mode]
        or not isinstance(image, ImageFile.ImageFile)
    ):
        return
    [tile] = image.tile
    if tile.codec_name == "raw" and isinstance(tile.args, tuple):
        greys = (0, 255) if image.mode == "1" else range(256)
        image._mode = "P"  # noqa: SLF001 - as Pillow's readers do
        image.palette = ImagePalette.raw("RGB", bytes(grey for grey in greys for _ in range(3)))
        image.tile = [tile._replace(args=({1: "P;1", 4: "P;4", 8: "P"}[bits], *tile.args[1:]))]


def _conversion(image: Image.Image, encoded: bytes, image_format: str) -> Conversion | None:
    if image.mode not in _COLOURED:
        return None
    profile = image.info.get("icc_profile")
    if profile:
        return colour.from_profile(bytes(profile))
    if image_format in {"AVIF", "HEIF"}:
        return colour.from_primaries(read_heif(encoded, image_format).primaries)
    return None


def _over_white(image: Image.Image, _top: int = 0) -> Pixels:
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return np.array(white)


def _over_white_but(opened: Opened) -> Callable[[Image.Image, int], Pixels]:
    """Return the conversion of a PNG with one transparent colour, which is compared with the samples of the file."""
    png, again = opened.png, opened.again
    assert png is not None and again is not None  # noqa: PT018, S101 - for the type checker
    colour_of_file = png.transparent_colour
    assert colour_of_file is not None  # noqa: S101 - as above
    # Pillow scales samples of fewer bits to eight, and keeps the upper byte of those of sixteen.
    sixteen = png.depth > 8  # noqa: PLR2004 - bits
    scale = 1 if sixteen else _LARGEST_8_BIT // ((1 << png.depth) - 1)
    upper = np.array([each >> 8 if sixteen else each * scale for each in colour_of_file])
    low = None
    if sixteen:
        # Read as if in the other byte order, the lower byte is the upper one.
        low = again()
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()

    def convert(strip: Image.Image, top: int) -> Pixels:
        pixels = np.array(strip.convert("RGB"))
        transparent = (pixels == upper).all(axis=2)
        if low is not None:
            lower = np.asarray(low.crop((0, top, strip.width, top + strip.height)))
            transparent &= (lower == np.array(colour_of_file) % 256).all(axis=2)
        pixels[transparent] = _LARGEST_8_BIT
        return pixels

    return convert


def _from_16_bit(opened: Opened) -> Callable[[Image.Image, int], Pixels]:
    tags = getattr(opened.image, "tag_v2", None)
    # Pillow inverts such TIFFs with 8 bits, but not with 16.
    inverted = tags is not None and tags.get(_PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    bits = 12 if tags is not None and tags.get(_BITS_PER_SAMPLE) == (12,) else 16
    transparent = None if opened.png is None else opened.png.transparent_colour

    def convert(strip: Image.Image, _top: int) -> Pixels:
        grey: NDArray[np.uint16] = np.asarray(strip)
        if inverted:
            grey = _LARGEST_16_BIT - grey
        # Keep the upper eight bits; Pillow's conversion would clip everything above 255 to white.
        pixels = np.repeat((grey >> (bits - 8)).astype(np.uint8)[:, :, None], 3, axis=2)
        if transparent is not None:
            pixels[grey == transparent[0]] = _LARGEST_8_BIT
        return pixels

    return convert


def _whiten_outside(pixels: Pixels, top: int, box: tuple[int, int, int, int]) -> None:
    """Make the part of a strip white that is outside of `box`. `top` is the first row of the strip."""
    left, upper, right, lower = box
    pixels[: max(0, upper - top)] = _LARGEST_8_BIT
    pixels[max(0, lower - top) :] = _LARGEST_8_BIT
    pixels[:, :left] = _LARGEST_8_BIT
    pixels[:, right:] = _LARGEST_8_BIT


class _MeteredFile(BytesIO):
    """An encoded image for Pillow, which reads tag by tag in Python and holds the GIL meanwhile. `read` raises
    UndecodableImageError after too many calls or bytes: a defence against endless tags and chunks."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._file_bytes = len(encoded)
        self._reads_left = _MOST_HEADER_READS
        self._bytes_left = _MOST_BYTES_READ

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(piece)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise UndecodableImageError(None, "it consists of too many pieces")
        return piece

    def grant_pixels(self) -> None:
        """Allow as many reads as the pixels may need."""
        self._reads_left = _MOST_HEADER_READS + self._file_bytes // _BYTES_OF_A_READ
