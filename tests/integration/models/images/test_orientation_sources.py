"""Photographs with unusual orientation metadata are decoded upright."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from models.images.decode import decode_pixels
from models.interface.request import ImageLimits

_ORIENTATION, _MAKE = 0x0112, 0x010F
_XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'


def _file(image_format: str, exif: Image.Exif) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, image_format, exif=exif)
    return file.getvalue()


def test_xmp_gives_the_orientation_if_exif_has_none() -> None:
    exif = Image.Exif()
    exif[_MAKE] = "camera"
    jpeg = _file("JPEG", exif)
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(_XMP)) + _XMP
    assert decode_pixels(jpeg[:2] + segment + jpeg[2:], ImageLimits()).shape == (40, 30, 3)


def test_exif_data_with_their_prefix_in_a_png_are_read() -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    body = b"eXIfExif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    png = _file("PNG", Image.Exif())
    at = png.index(b"IDAT") - 4
    assert decode_pixels(png[:at] + chunk + png[at:], ImageLimits()).shape == (40, 30, 3)
