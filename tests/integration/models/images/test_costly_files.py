"""The files of reliability.costly are images, small to send, and the same in each run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import PurePath

import pytest
from PIL import Image

from models.images.decode import decode_strips
from models.interface.request import ImageLimits
from reliability.costly import CORPUS, jpegs, pngs, tiffs, webps
from reliability.costly.jpegs import CMYK, GREY, YCC_420, YCC_444
from reliability.costly.pngs import Colour
from reliability.costly.tiffs import Packing, Photometric, strips, tiles

_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF"}
_MOST_BYTES = 7_000_000
_SIZE = (96, 64)

# The generators, with pictures so small that a decoder is soon done.
SMALL: dict[str, Callable[[], bytes]] = {
    "baseline JPEG without data": lambda: jpegs.baseline(*_SIZE, YCC_420),
    "baseline JPEG without restart markers": lambda: jpegs.baseline(*_SIZE, YCC_420, restart_interval=1),
    "whole baseline JPEG": lambda: jpegs.whole_baseline(*_SIZE, CMYK),
    "progressive JPEG": lambda: jpegs.progressive(*_SIZE, YCC_420, 20),
    "valid progressive JPEG": lambda: jpegs.valid_progressive(*_SIZE, YCC_420),
    "arithmetic JPEG": lambda: jpegs.arithmetic(*_SIZE, YCC_444),
    "arithmetic progressive JPEG": lambda: jpegs.arithmetic_progressive(*_SIZE, YCC_444, 10),
    "lossless JPEG": lambda: jpegs.lossless(*_SIZE, YCC_444),
    "PNG": lambda: pngs.png(*_SIZE, Colour.GREY_ALPHA, 16),
    "interlaced PNG": lambda: pngs.png(*_SIZE, Colour.RGBA, 16, interlaced=True),
    "noisy PNG": lambda: pngs.png(*_SIZE, Colour.RGB, 8, noise=True),
    "PNG with a palette": lambda: pngs.png(*_SIZE, Colour.PALETTE, 4, trns=True),
    "GIF": lambda: pngs.gif(*_SIZE, transparent=True),
    "GIF on a canvas": lambda: pngs.gif(8, 8, canvas=_SIZE),
    "BMP of runs": lambda: pngs.single_run_bmp(*_SIZE),
    "BMP": lambda: pngs.bilevel_bmp(*_SIZE),
    "WebP": lambda: webps.transformed(*_SIZE),
    "WebP of groups": lambda: webps.of_groups(64, 256),
    "animated WebP": lambda: webps.animated(*_SIZE),
    "TIFF of strips": lambda: tiffs.tiff(*_SIZE, strips(96, 3), samples=4, bits=16),
    "LAB TIFF": lambda: tiffs.tiff(*_SIZE, strips(96, 64), samples=3, photometric=Photometric.LAB),
    "TIFF of tiles": lambda: tiffs.tiff(*_SIZE, tiles(16, 64)),
    "raw TIFF": lambda: tiffs.tiff(*_SIZE, strips(96, 8), Packing.RAW),
    "TIFF of LZMA": lambda: tiffs.tiff(*_SIZE, tiles(16, 64), Packing.LZMA, piece=tiffs.lzma_literals(16 * 64)),
    "TIFF of JPEG": lambda: tiffs.tiff(
        *_SIZE, tiles(32, 32), Packing.JPEG, piece=jpegs.arithmetic_progressive(32, 32, GREY, 9)
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_decoder_reads_each_kind_to_its_end(name: str) -> None:
    with Image.open(io.BytesIO(SMALL[name]())) as image:
        image.load()
        assert image.size == ((64, 64) if "groups" in name else _SIZE)


def test_a_lossless_jpeg_is_never_reduced() -> None:
    """libjpeg-turbo cannot reduce one: it writes beyond its memory."""
    pixels = decode_strips(jpegs.lossless(2000, 2000, YCC_444), ImageLimits(), enough=256).assembled()
    assert pixels.shape == (2000, 2000, 3)


@pytest.mark.parametrize("name", CORPUS)
def test_each_file_is_small_and_has_the_header_of_an_image(name: str) -> None:
    encoded = CORPUS[name]()
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == _FORMATS[PurePath(name).suffix]
        assert image.width * image.height <= 50_000_000
    assert len(encoded) < _MOST_BYTES
