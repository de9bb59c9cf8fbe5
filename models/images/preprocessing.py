"""From an image file to the input of a model. Calibration and jobs call `preprocess`; the decode pool of the server
takes the same steps, of which `decode_strips` may run in a decoder process."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from models.images.colour import Conversion, Pixels
from models.images.decode import ON_ITS_SIDE, Reduction, Strips, decode_strips, oriented
from models.images.formats import predict_cost
from models.interface.errors import UnfitPixelsError
from models.interface.model_sources import Fit, Interpolation
from models.interface.request import ImageLimits, ReadyPixels


def decode_image(encoded: bytes, limits: ImageLimits, *, enough: int | None = None) -> torch.Tensor:
    """Return the picture in `encoded` as a (3, H, W) uint8 sRGB tensor on the CPU, channels last in memory.

    `enough` as in models.images.decode.decode_strips. Raises ImageError, TooCostlyError before any decode.
    """
    predict_cost(encoded, limits, enough=enough, whole=True)
    return to_tensor(decode_strips(encoded, limits, enough=enough).assembled())


def preprocess(encoded: bytes, transform: Transform, limits: ImageLimits) -> torch.Tensor:
    """(3, crop, crop) uint8 sRGB, channels last in memory, of the image in `encoded`. Raises ImageError."""
    enough = pixels_needed(transform)
    predict_cost(encoded, limits, enough=enough)
    return transform.shape_strips(decode_strips(encoded, limits, enough=enough))


# A JPEG is decoded at no less than so many times the size that it is resized to: with 4, probabilities of 50
# photographs of 12 MP moved by up to 0.0103, as by rounding in the resize; with 2, by 0.030 (benchmarks.reduced_jpegs).
_OVERSAMPLING = 4
# More than the rounding of a factor between two sides, and far less than a pixel.
_EPSILON = 1e-9


def pixels_needed(transform: Transform) -> int | None:
    """Return the shorter side that a reduced decode of a JPEG must keep; None if it is to be decoded in full."""
    return None if transform.exact_jpeg else _OVERSAMPLING * transform.resize


# How far floats may lie outside 0..255 and are clipped.
_OVERSHOOT = 8.5


@dataclass(frozen=True, slots=True)
class Transform:
    """Resize the shorter side to `resize` pixels with antialiasing (both sides or the longer one, as `fit` says), crop
    the middle `crop` x `crop`, scale to 0..1, subtract `mean`, divide by `std` (each per RGB channel)."""

    resize: int
    crop: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    # Not in the repr, which fingerprints hash, so that existing fingerprints stay valid.
    fit: Fit = field(default="crop", repr=False)
    # Decode JPEGs in full, however large they are. Fingerprints hash `pixels_needed`.
    exact_jpeg: bool = field(default=False, repr=False)

    def shape(self, image: torch.Tensor) -> torch.Tensor:
        """Resize and crop (3, H, W) uint8 to (3, crop, crop) uint8, channels last in memory."""
        pixels: Pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
        height, width, _ = pixels.shape
        return self.shape_strips(Strips(height, width, 1, iter([pixels])))

    def shape_strips(self, picture: Strips) -> torch.Tensor:
        """Return what `shape` does with the assembled picture, but hold only a strip of it in memory at a time.

        The result is the same to the bit, because resizing resizes each row first, on its own. If the picture lies on
        its side and has several strips, its columns come first: values differ by 1, and more where bicubic overshoots.

        Does what torchvision's `resize` and `center_crop` do, with one call into PyTorch for each strip. Each call,
        even for a view, releases the GIL, and the decode thread then waits for other threads to get it back.
        """
        first = next(picture.strips)
        on_its_side = picture.orientation in ON_ITS_SIDE
        whole = picture.reduction or Reduction(1, picture.height, picture.width)
        if on_its_side:
            whole = whole._replace(height=whole.width, width=whole.height)
        size = self._resized(whole.height, whole.width)
        if len(first) == picture.height:
            pixels = self._interpolated(oriented(first, picture.orientation), size, whole)
            return self._cropped(pixels, picture.conversion)
        columns = size[0] if on_its_side else size[1]
        pixels, top = np.empty((picture.height, columns, 3), np.uint8), 0
        for strip in chain((first,), picture.strips):
            pixels[top : top + len(strip)] = self._interpolated(strip, (len(strip), columns))
            top += len(strip)
        return self._cropped(self._interpolated(oriented(pixels, picture.orientation), size), picture.conversion)

    def _interpolated(self, pixels: Pixels, size: tuple[int, int], whole: Reduction | None = None) -> Pixels:
        """Resize (H, W, 3) to `size`; the pixels are those of `whole`, if that was reduced."""
        if pixels.shape[:2] == size:
            return pixels
        # `reshape` gives strides that PyTorch recognizes as channels last; a new axis would have stride 0.
        batch = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
        resize = partial(interpolate, batch, mode=self.interpolation, antialias=True)
        if whole is None or whole.factor == 1:
            resized: Pixels = resize(size).numpy()[0]
        else:
            # Sides of a reduced picture are rounded up: the last pixel is a part of one. PyTorch rounds down what a
            # factor makes of a side, which must not fall short of a whole number.
            sides = zip(size, (whole.height, whole.width), strict=True)
            factors = [(each * whole.factor / side) * (1 + _EPSILON) for each, side in sides]
            resized = resize(scale_factor=factors, recompute_scale_factor=False).numpy()[0]
        return resized.transpose(1, 2, 0)

    def _cropped(self, pixels: Pixels, conversion: Conversion | None) -> torch.Tensor:
        """Cut (3, crop, crop) out of resized (H, W, 3), in the colours of `conversion`."""
        # Nothing is cut off a picture that is put on a canvas, whose colour is not converted.
        on_canvas = min(pixels.shape[:2]) < self.crop
        if on_canvas:
            pixels = self._on_canvas(pixels if conversion is None else conversion.apply(pixels))
        top, left = (round((side - self.crop) / 2) for side in pixels.shape[:2])
        # A copy, which frees the other pixels.
        cropped = pixels[top : top + self.crop, left : left + self.crop].copy()
        if conversion is not None and not on_canvas:
            cropped = conversion.apply(cropped)
        return torch.from_numpy(cropped.transpose(2, 0, 1))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        match self.fit:
            case "crop":
                shorter, longer = sorted((height, width))
                enough = int(self.resize * longer / shorter)
                return (self.resize, enough) if height <= width else (enough, self.resize)
            case "stretch":
                return self.resize, self.resize
            case "pad":
                scale = self.resize / max(height, width)
                return max(1, round(height * scale)), max(1, round(width * scale))

    def _on_canvas(self, pixels: Pixels) -> Pixels:
        """Return (H, W, 3) pixels centred on a canvas of at least `crop` x `crop`, of the mean colour for `pad`, else
        black."""
        height, width, _ = pixels.shape
        rows, columns = max(height, self.crop), max(width, self.crop)
        canvas = np.empty((rows, columns, 3), np.uint8)
        canvas[:] = [round(255 * mean) for mean in self.mean] if self.fit == "pad" else 0
        top, left = (rows - height) // 2, (columns - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        return canvas


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """View (H, W, 3) uint8 as (3, H, W), channels last in memory."""
    # Transposed by NumPy, because PyTorch would release the GIL, and wait to get it back.
    return torch.from_numpy(pixels.transpose(2, 0, 1))


def prepared(image: ReadyPixels, transform: Transform) -> torch.Tensor:
    """Return ready pixels as (3, crop, crop) uint8, channels last in memory. Normalized values are rounded to the
    pixels that they were made of. Raises UnfitPixelsError."""
    wanted = (3, transform.crop, transform.crop)
    if image.values.shape != wanted:
        raise UnfitPixelsError(f"they have the shape {list(image.values.shape)}, and it takes {list(wanted)}")
    pixels = _in_range(image, transform)
    # A copy, which frees the memory of the request.
    return to_tensor(pixels.transpose(1, 2, 0).astype(np.uint8, order="C", copy=True))


def _in_range(image: ReadyPixels, transform: Transform) -> np.ndarray:
    """Return the values on the scale 0..255, rounded. Raises UnfitPixelsError for other values."""
    values = image.values
    if values.dtype == np.uint8:
        return values
    lowest, highest = 0.0, 255.0
    if image.bfloat16 or values.dtype.kind == "f":
        values = _unnormalized(image, transform)
        # A client may have resized without clipping, and rounds: bicubic filters overshoot.
        lowest, highest = -_OVERSHOOT, 255 + _OVERSHOOT
    # NaN compares false.
    if not (lowest <= values.min() and values.max() <= highest):
        expected = "(p / 255 - mean) / std of pixels p of 0 to 255" if image.normalized else "0 to 255"
        found = f"{values.min():.4g} to {values.max():.4g}"
        scale = " on the scale of pixels" if image.normalized else ""
        raise UnfitPixelsError(f"their values are {found}{scale}, and it takes {expected}")
    return np.clip(np.rint(values), 0, 255) if values.dtype.kind == "f" else values


def _unnormalized(image: ReadyPixels, transform: Transform) -> np.ndarray:
    """Return float values as float32 on the scale 0..255."""
    # A float64 may be infinite as a float32.
    with np.errstate(over="ignore", invalid="ignore"):
        if image.bfloat16:
            values = (image.values.astype(np.uint32) << 16).view(np.float32)
        else:
            values = image.values.astype(np.float32)
        if not image.normalized:
            return values
        std, mean = (np.array(numbers, np.float32).reshape(3, 1, 1) for numbers in (transform.std, transform.mean))
        return values * (255 * std) + 255 * mean


class Normalize(nn.Module):
    """Maps (N, 3, H, W) uint8 to float32: (x / 255 - mean) / std."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        mean = torch.tensor(transform.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(transform.std, dtype=torch.float64).view(1, 3, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float() * self.scale + self.shift
