"""Files whose header promises little and whose decode would cost seconds or hundreds of megabytes."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.images.preprocessing import decode_image
from models.interface.errors import ImageError, TooCostlyError, UndecodableImageError
from models.interface.request import ImageLimits

LIMITS = ImageLimits()

# pytest sets warning filters of its own, so this runs in a process without it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# Of a process that has imported PyTorch: what the decode adds to it.
_LOOK = """
import resource, sys
from models.interface.errors import ImageError
from models.images.decode import ignore_pillow_warnings
from models.interface.request import ImageLimits
from models.images.preprocessing import decode_image

ignore_pillow_warnings()

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

before = peak_mb()
for name in sys.argv[1:]:
    try:
        decode_image(open(name, "rb").read(), ImageLimits())
    except ImageError:
        pass
print(peak_mb() - before)
"""


def _jpeg(size: tuple[int, int] = (256, 256), **options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize(size).save(file, "JPEG", **options)
    return file.getvalue()


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _with_header(inserted: bytes) -> bytes:
    """A JPEG with something before its first segment."""
    whole = _jpeg()
    return whole[:2] + inserted + whole[2:]


def _with_scans(scans: int, size: tuple[int, int] = (256, 256)) -> bytes:
    """A progressive JPEG whose first scan comes again and again."""
    whole = _jpeg(size, progressive=True)
    start = whole.index(b"\xff\xda")
    end = whole.index(b"\xff", start + 14)
    while whole[end + 1] == 0:
        end = whole.index(b"\xff", end + 2)
    return whole[:start] + whole[start:end] * scans + whole[end:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, colours: int, samples: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A blank PNG, and chunks before and after its pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    packer = zlib.compressobj()
    row = bytes(1 + width * samples)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + header + before + _chunk(b"IDAT", rows) + after + _chunk(b"IEND", b"")


def _tiff(tags: Mapping[int, tuple[int, int, int]], pixels: bytes) -> bytes:
    """Return a little-endian TIFF of tags (type, count, value) and pixels; the value -1 becomes their offset."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, kind, number, start if value < 0 else value)
        for tag, (kind, number, value) in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def _tiled_tiff(side: int, tile: int) -> bytes:
    pixels = zlib.compress(bytes(tile * tile), 9)
    values = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: -1, 325: len(pixels)}
    return _tiff({tag: (4, 1, value) for tag, value in values.items()}, pixels)


def _tiff_of_lies(lies: int) -> bytes:
    """A picture of 8 x 8, and tags that lie outside of the file."""
    values = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: -1, 277: 1, 278: 8, 279: 64}
    tags = {tag: (4, 1, value) for tag, value in values.items()}
    return _tiff(tags | {40_000 + tag: (7, 2**30 + tag, 8) for tag in range(lies)}, bytes(64))


def _big_tiff_of_profiles(number: int) -> bytes:
    """A picture of 8 x 8, and one entry after another for an ICC profile."""
    values = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 8, 279: 64}
    entries = b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in values.items())
    profiles = struct.pack("<HHQQ", 34675, 1, 1, 0) * number
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 80)
    return head + bytes(64) + struct.pack("<Q", len(values) + number) + entries + profiles + bytes(8)


def _rle_bmp(width: int, height: int) -> bytes:
    """Return a run-length encoded BMP with one black pixel in each line."""
    pixels = b"\x01\x01\x00\x00" * height
    start = 14 + 40 + 4 * 256
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    size = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return head + size + bytes(4 * 256) + pixels


def _gif_with_comment(blocks: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "GIF")
    whole = file.getvalue()
    start = whole.index(b",", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    return whole[:start] + b"!\xfe" + (b"\x01x" * blocks) + b"\0" + whole[start:]


def _gif_with_xmp(size: int) -> bytes:
    """A GIF with an XMP packet (XMP specification part 3, 1.1.2): text whose bytes are read as lengths of blocks, and a
    trailer that ends at zero wherever they lead."""
    text = b"<x:xmpmeta>" + b"<rdf:li>a picture of nothing at all</rdf:li>\n" * (size // 45)
    packet = b"!\xff\x0bXMP DataXMP" + text + b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    whole = _gif_with_comment(1)
    at = whole.index(b"!\xfe")
    return whole[:at] + packet + whole[at:]


_LARGE = (4000, 3000)

BOMBS: dict[str, tuple[Callable[[], bytes], type[ImageError], str]] = {
    "a TIFF of 64 x 64 in one tile of 16000 x 16000": (
        lambda: _tiled_tiff(64, 16_000),
        TooCostlyError,
        "s of CPU time",
    ),
    "a TIFF whose tiles have a byte for a width": (
        lambda: _tiled_tiff(64, 64).replace(struct.pack("<HHII", 322, 4, 1, 64), struct.pack("<HHII", 322, 1, 1, 255)),
        UndecodableImageError,
        "decoder error",
    ),
    "a BigTIFF with 200,000 profiles": (lambda: _big_tiff_of_profiles(200_000), UndecodableImageError, "pieces"),
    "a TIFF with 20,000 tags": (lambda: _tiff_of_lies(20_000), UndecodableImageError, "pieces"),
    "a JPEG with 10,000 Exif segments": (
        lambda: _with_header(_segment(0xE1, b"Exif\0\0x") * 10_000),
        UndecodableImageError,
        "segments",
    ),
    "a JPEG with Exif in 65 large segments": (
        lambda: _with_header(_segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 65),
        UndecodableImageError,
        "Exif",
    ),
    "a JPEG with 200,000 comments": (
        lambda: _with_header(_segment(0xFE, b"") * 200_000),
        UndecodableImageError,
        "segments",
    ),
    "a JPEG with padding before a marker": (
        lambda: _with_header(b"\xff" * 4_000_000),
        UndecodableImageError,
        "between its markers",
    ),
    "a JPEG with rubbish before each marker": (
        lambda: _with_header((_segment(0xFE, b"") + b"rubbish" * 2_000) * 100),
        UndecodableImageError,
        "between its markers",
    ),
    "a JPEG that is padding to its end": (
        lambda: _jpeg()[:2] + b"\xff" * 4_000_000,
        UndecodableImageError,
        "between its markers",
    ),
    "a JPEG whose frame has 20,000 components": (
        lambda: _with_header(_segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 3) + bytes(60_000))),
        UndecodableImageError,
        "too long",
    ),
    "a JPEG with 10,000 resources of Photoshop": (
        lambda: _with_header(_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5_001) * 2),
        UndecodableImageError,
        "Photoshop",
    ),
    "a progressive JPEG of 12 megapixels with 200 scans": (
        lambda: _with_scans(200, _LARGE),
        TooCostlyError,
        "s of CPU time",
    ),
    "a progressive JPEG with scans behind rubbish": (
        lambda: _with_scans(200, _LARGE).replace(b"\xff\xda", b"\x01\xff\xff\xff\xda"),
        TooCostlyError,
        "s of CPU time",
    ),
    "a PNG with 300,000 chunks before its pixels": (
        lambda: _png(8, 8, 2, 3, before=_chunk(b"prVt", b"") * 300_000),
        UndecodableImageError,
        "pieces",
    ),
    "a PNG with 300,000 chunks behind its pixels": (
        lambda: _png(8, 8, 2, 3, after=_chunk(b"prVt", b"") * 300_000),
        UndecodableImageError,
        "pieces",
    ),
    "a GIF whose comment has 100,000 blocks": (lambda: _gif_with_comment(100_000), UndecodableImageError, "pieces"),
}

# The same kinds of files, as cameras and programs may write them.
HARMLESS: dict[str, Callable[[], bytes]] = {
    "a TIFF of 64 x 64 in one tile of 256 x 256": lambda: _tiled_tiff(64, 256),
    "a TIFF with a few tags that lie": lambda: _tiff_of_lies(30),
    "a JPEG with Exif in some segments": lambda: _with_header(_segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 8),
    "a JPEG that is metadata all over": lambda: _with_header(_segment(0xE2, bytes(65_000)) * 300),
    "a JPEG with padding here and there": lambda: _with_header((b"\xff" * 100 + _segment(0xFE, b"")) * 20),
    "a JPEG with a film behind it": lambda: _jpeg(progressive=True) + b"\xff\xda\0\x08" * 5_000,
    "a JPEG with pictures in its metadata": lambda: _with_header(_segment(0xED, b"\xff\xda" * 5_000)),
    "a progressive JPEG with pictures in a later comment": lambda: _with_scans(1).replace(
        b"\xff\xc4", _segment(0xFE, b"\xff\xda" * 5_000) + b"\xff\xc4"
    ),
    "a progressive JPEG with restart markers": lambda: _jpeg(progressive=True, restart_marker_blocks=1),
    "a progressive JPEG with 200 scans that is small": lambda: _with_scans(200),
    "a run-length encoded BMP": lambda: _rle_bmp(1600, 1200),
    "a GIF with an XMP packet of 175 kB": lambda: _gif_with_xmp(175_000),
    "a PNG with some chunks": lambda: _png(8, 8, 2, 3, before=_chunk(b"prVt", b"") * 100),
    "a GIF with a comment": lambda: _gif_with_comment(500),
}


Look = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def look(warm_command: Any, tmp_path: Path) -> Look:
    """Run a program with the paths of files, in a process of its own."""

    def run(code: str, *files: Path) -> subprocess.CompletedProcess[bytes]:
        script = tmp_path / "look.py"
        script.write_text(code)
        ended: subprocess.CompletedProcess[bytes] = warm_command.run([script, *files], os.environ)
        ended.check_returncode()
        return ended

    return run


@pytest.fixture
def peak_mb(look: Look) -> Callable[..., float]:
    """The memory that decodes of these files add to a process."""
    return lambda *files: float(look(_LOOK, *files).stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_costs_more_than_its_size_suggests_is_refused(name: str) -> None:
    make, refusal, reason = BOMBS[name]
    with pytest.raises(refusal, match=reason):
        decode_image(make(), LIMITS)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_cameras_and_programs_write_is_read(name: str) -> None:
    assert decode_image(HARMLESS[name](), LIMITS).shape[0] == 3


def test_refusing_them_takes_no_memory(peak_mb: Callable[..., float], tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(len(BOMBS))]
    for file, (make, _, _) in zip(files, BOMBS.values(), strict=True):
        file.write_bytes(make())
    # The largest has 4 MB; the tile alone would take 256.
    assert peak_mb(*files) < 48


def test_transparency_over_a_large_picture_takes_memory_for_two_of_it_and_not_for_five(
    peak_mb: Callable[..., float], tmp_path: Path
) -> None:
    file = tmp_path / "transparent.png"
    megapixels = 24
    file.write_bytes(_png(6000, 4000, 6, 4))
    # RGBA as decoded, and RGB.
    assert peak_mb(file) < megapixels * (4 + 3) + 60


def test_large_and_small_pictures_are_blended_over_the_same_white() -> None:
    corner = Image.new("RGBA", (1500, 1400), (0, 0, 0, 0))
    corner.paste(Image.linear_gradient("L").convert("RGBA"), (1000, 1100))
    file = io.BytesIO()
    corner.save(file, "PNG", compress_level=1)
    cut = io.BytesIO()
    corner.crop((900, 1000, 1500, 1400)).save(cut, "PNG")
    assert decode_image(file.getvalue(), LIMITS)[:, 1000:, 900:].equal(decode_image(cut.getvalue(), LIMITS))


def test_wrong_tags_cause_neither_log_lines_nor_warnings(look: Look, tmp_path: Path) -> None:
    file = tmp_path / "lies.tiff"
    file.write_bytes(_tiff_of_lies(500))
    listening = "import logging\nlogging.basicConfig(level=0)\nlogging.captureWarnings(True)\n"
    assert not re.search(b"PIL|[Tt]ag", look(listening + _LOOK, file).stderr)


def test_importing_models_leaves_the_limits_and_warnings_of_pillow_to_the_process(look: Look) -> None:
    # The process has imported everything.
    looking = (
        "import logging, warnings\n"
        "from PIL import Image\n"
        "assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3\n"
        "assert logging.getLogger('PIL').level == logging.NOTSET\n"
        "assert 'PIL' not in str(warnings.filters)\n"
    )
    look(looking)
