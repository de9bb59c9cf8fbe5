"""Files that are small to send and expensive to decode, by name. They are generated, the same in each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from reliability.costly import jpegs, pngs, tiffs, webps
from reliability.costly.jpegs import CMYK, GREY, YCC_420, YCC_444
from reliability.costly.pngs import Colour
from reliability.costly.tiffs import Packing, Photometric, strips, tiles

# The most pixels that are accepted by default are 50 million.
_48_MEGAPIXELS = (8000, 6000)
_12_MEGAPIXELS = (4000, 3000)
_1_MEGAPIXEL = (1000, 1000)
# The widest that a WebP can be.
_WEBP_50_MEGAPIXELS = (16_383, 3050)

CORPUS: Mapping[str, Callable[[], bytes]] = {
    "jpeg-arithmetic-10-scans-of-1-MP.jpg": partial(jpegs.arithmetic_progressive, *_1_MEGAPIXEL, YCC_444, 10),
    "jpeg-arithmetic-99-scans-of-12-MP.jpg": partial(jpegs.arithmetic_progressive, *_12_MEGAPIXELS, YCC_444, 99),
    "jpeg-arithmetic-12-MP.jpg": partial(jpegs.arithmetic, *_12_MEGAPIXELS, YCC_444),
    "jpeg-progressive-99-scans-of-12-MP.jpg": partial(jpegs.progressive, *_12_MEGAPIXELS, YCC_420, 99),
    "jpeg-progressive-99-scans-of-48-MP.jpg": partial(jpegs.progressive, *_48_MEGAPIXELS, YCC_444, 99),
    "jpeg-progressive-valid-48-MP.jpg": partial(jpegs.valid_progressive, *_48_MEGAPIXELS, YCC_420),
    "jpeg-without-data-48-MP.jpg": partial(jpegs.baseline, *_48_MEGAPIXELS, YCC_420),
    "jpeg-without-restart-markers-48-MP.jpg": partial(jpegs.baseline, *_48_MEGAPIXELS, YCC_420, restart_interval=1),
    "jpeg-cmyk-48-MP.jpg": partial(jpegs.whole_baseline, *_48_MEGAPIXELS, CMYK),
    "jpeg-lossless-48-MP.jpg": partial(jpegs.lossless, *_48_MEGAPIXELS, GREY),
    "jpeg-lossless-colour.jpg": partial(jpegs.lossless, 2000, 2000, YCC_444),
    "png-rgba-16-bit-48-MP.png": partial(pngs.png, *_48_MEGAPIXELS, Colour.RGBA, 16),
    "png-rgba-16-bit-interlaced-48-MP.png": partial(pngs.png, *_48_MEGAPIXELS, Colour.RGBA, 16, interlaced=True),
    "png-rgba-16-bit-noise-48-MP.png": partial(pngs.png, *_48_MEGAPIXELS, Colour.RGBA, 16, noise=True),
    "png-rgba-48-MP.png": partial(pngs.png, *_48_MEGAPIXELS, Colour.RGBA, 8),
    "png-palette-transparent-48-MP.png": partial(pngs.png, *_48_MEGAPIXELS, Colour.PALETTE, 8, trns=True),
    "webp-lossless-50-MP.webp": partial(webps.transformed, *_WEBP_50_MEGAPIXELS),
    "webp-65536-groups.webp": partial(webps.of_groups, 1024, 65_536),
    "webp-canvas-50-MP.webp": partial(webps.animated, *_WEBP_50_MEGAPIXELS),
    "gif-transparent-48-MP.gif": partial(pngs.gif, *_48_MEGAPIXELS, transparent=True),
    "gif-canvas-48-MP.gif": partial(pngs.gif, 8, 8, canvas=_48_MEGAPIXELS, transparent=True),
    "bmp-runs-of-one-pixel.bmp": partial(pngs.single_run_bmp, 1600, 1200),
    "bmp-1-bit-48-MP.bmp": partial(pngs.bilevel_bmp, *_48_MEGAPIXELS),
    "tiff-63-tiles-of-48-MB.tif": lambda: tiffs.tiff(1000, 64, tiles(16, 3_000_000)),
    "tiff-1563-tiles-of-48-MB.tif": lambda: tiffs.tiff(25_000, 2000, tiles(16, 3_000_000)),
    "tiff-1563-tiles-of-lzma.tif": lambda: tiffs.tiff(
        25_000, 2000, tiles(16, 32_768), Packing.LZMA, piece=tiffs.lzma_literals(16 * 32_768)
    ),
    "tiff-rgba-16-bit-48-MP.tif": lambda: tiffs.tiff(*_48_MEGAPIXELS, strips(8000, 50), samples=4, bits=16),
    "tiff-lab-48-MP.tif": lambda: tiffs.tiff(
        *_48_MEGAPIXELS, strips(8000, 100), samples=3, photometric=Photometric.LAB
    ),
    "tiff-jpeg-of-99-scans-48-MP.tif": lambda: tiffs.tiff(
        *_48_MEGAPIXELS,
        strips(8000, 6000),
        Packing.JPEG,
        piece=jpegs.progressive(*_48_MEGAPIXELS, GREY, 99),
    ),
    "tiff-tiles-of-arithmetic-jpegs-1-MP.tif": lambda: tiffs.tiff(
        1024, 1024, tiles(256, 256), Packing.JPEG, piece=jpegs.arithmetic_progressive(256, 256, GREY, 99)
    ),
}
