"""Open by Pillow what libjpeg-turbo's own interface does not read; to_rgb.py turns it into RGB.

Pillow gets no metadata that its readers would stumble over, one thread for each decode, and a limited number of reads.
tests/integration/models/images/test_format_table.py holds each mode, depth, layout and byte order to other decoders.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Literal, NamedTuple

from PIL import AvifImagePlugin, Image, ImageCms, ImageFile, ImagePalette, TiffImagePlugin

from models.images import bmp, colour, tiff, webp
from models.images.colour import Conversion
from models.images.formats import PILLOW_HEIF, PILLOW_NAMES, known_format
from models.images.gif import read_gif
from models.images.heif import read_heif
from models.images.jpeg import read_jpeg
from models.images.png import Png, read_png
from models.images.tiff import read_numbers
from models.interface.errors import UndecodableImageError

LARGEST_8_BIT = 255

# Tags of a TIFF (TIFF 6.0, section 8).
BITS_PER_SAMPLE = 258
PHOTOMETRIC_INTERPRETATION = 262
_SAMPLES_PER_PIXEL = 277
_COLOUR_MAP = 320

# Calls of `read` until width and height are known. The pixels may take as many again, or one for each _BYTES_OF_A_READ
# of the file in addition.
_MOST_HEADER_READS = 4_000
_BYTES_OF_A_READ = 64
_MOST_BYTES_READ = 2**31

# Modes whose colours an ICC profile describes, and its own mode.
_COLOURED: Mapping[str, Literal["RGB", "CMYK"]] = {
    "RGB": "RGB",
    "RGBA": "RGB",
    "P": "RGB",
    "PA": "RGB",
    "CMYK": "CMYK",
}

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
Image.register_decoder("bmp_rle", bmp.RunsDecoder)
# libtiff reads planes of 16 bits rightly, and Pillow's own reader of uncompressed TIFFs does not.
TiffImagePlugin.READ_LIBTIFF = True
# Kinds that it reads, and that the plugin lacks: grey of 16 bits from white, and of 12, in the other byte order.
TiffImagePlugin.OPEN_INFO[TiffImagePlugin.MM, 0, (1,), 1, (16,), ()] = "I;16B", "I;16B"
TiffImagePlugin.OPEN_INFO[TiffImagePlugin.MM, 1, (1,), 1, (12,), ()] = "I;16", "I;12"
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
if PILLOW_HEIF.installed:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


class Opened(NamedTuple):
    """An image that Pillow has opened, and what its header says: Exif data, XMP, ICC profile, and the code of its
    primaries. `box`: the part that the file has pixels for, left, top, right, bottom. `png`: the chunks of a PNG, with
    `again` to open it a second time."""

    image: Image.Image
    exif: bytes
    xmp: bytes
    profile: bytes = b""
    primaries: int = 0
    box: tuple[int, int, int, int] | None = None
    png: Png | None = None
    again: Callable[[], ImageFile.ImageFile] | None = None

    def conversion(self) -> Conversion | None:
        """Return the conversion to sRGB after the resize; None if there is none."""
        if _COLOURED.get(self.image.mode) != "RGB":
            return None
        return colour.from_profile(self.profile) if self.profile else colour.from_primaries(self.primaries)

    def by_tables(self) -> ImageCms.ImageCmsTransform | None:
        """Return LittleCMS's conversion to sRGB, if the profile is made of tables and describes the image."""
        mode = _COLOURED.get(self.image.mode)
        return None if mode is None else colour.from_tables(self.profile, mode)


def open_image(encoded: bytes) -> Opened:
    """Raises EmptyImageError, UnsupportedFormatError, UndecodableImageError."""
    image_format = known_format(encoded).name
    with undecodable(image_format):
        match image_format:
            case "PNG":
                return _open_png(encoded)
            case "GIF":
                gif = read_gif(encoded)
                return Opened(_read("GIF", BytesIO(gif.reduced(encoded))), b"", b"", box=gif.box)
            case "JPEG":
                # jpeg.py counts the segments of a JPEG.
                image: Image.Image = _read("JPEG", BytesIO(encoded))
            case "TIFF":
                image = _open_tiff(encoded)
            case "BMP":
                image = _read("BMP", BytesIO(encoded))
                bmp.unify_palette(image, encoded)
            case _:
                image = _read(image_format, _MeteredFile(encoded))
        exif, xmp, profile = (image.info.get(name) or b"" for name in ("exif", "xmp", "icc_profile"))
        # The profile that the cost was predicted of, which Pillow may read otherwise: tables must not come to LittleCMS
        # in a thread.
        match image_format:
            case "JPEG":
                profile = read_jpeg(encoded).profile
            case "TIFF":
                profile = tiff.profile_of(encoded)
            case "WebP":
                profile = webp.profile_of(encoded)
        primaries = read_heif(encoded, image_format).primaries if image_format in {"AVIF", "HEIC"} else 0
        return Opened(image, exif, xmp if isinstance(xmp, bytes) else xmp.encode(), bytes(profile), primaries)


@contextmanager
def undecodable(image_format: str | None) -> Iterator[None]:
    """Turn errors of Pillow's readers into UndecodableImageError."""
    try:
        yield
    except struct.error as error:
        raise UndecodableImageError(image_format, "its header is damaged") from error
    except _DECODE_ERRORS as error:
        raise UndecodableImageError(image_format, str(error).strip().rstrip(".") or type(error).__name__) from error


def _read(image_format: str, file: BytesIO) -> ImageFile.ImageFile:
    # Not Image.open, which applies Pillow's process-wide size limit; ImageLimits decides here.
    reader, _ = Image.OPEN[PILLOW_NAMES[image_format]]
    image = reader(file, "")
    if isinstance(file, _MeteredFile):
        file.grant_pixels()
    return image


def _open_png(encoded: bytes) -> Opened:
    png = read_png(encoded)
    if not png.complete:
        raise UndecodableImageError("PNG", "it consists of too many pieces")
    reduced = png.reduced(encoded)

    def read() -> ImageFile.ImageFile:
        return _read("PNG", BytesIO(reduced))

    return Opened(read(), png.exif or png.exif_as_text, png.xmp, png.profile, png=png, again=read)


def _open_tiff(encoded: bytes) -> ImageFile.ImageFile:
    try:
        image = _read("TIFF", _MeteredFile(encoded))
    except SyntaxError as error:
        if str(error) != "unknown pixel mode":
            raise
        known = PHOTOMETRIC_INTERPRETATION, _SAMPLES_PER_PIXEL, BITS_PER_SAMPLE
        tags = read_numbers(encoded, known)
        photometric, samples, bits = (tags.get(tag, default) for tag, default in zip(known, (0, 1, 1), strict=True))
        raise UndecodableImageError(
            "TIFF",
            f"its pixels are stored in a way that is not read: {samples} samples of {bits} bits, "
            f"photometric interpretation {photometric}",
        ) from error
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP, ())
    if image.mode in {"P", "PA"} and max(colours) <= LARGEST_8_BIT:
        # Some programs write colours of 8 bits where the format has 16.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return image


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
