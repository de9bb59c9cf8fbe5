"""What int8 needs to know of the images a model will see: the ranges of numbers inside the network follow from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.hardware.placement import Precision
from models.images.preprocessing import preprocess
from models.images.transforms import Transform
from models.interface.errors import ImageError, StartError
from models.interface.home import expand_home
from models.interface.image_limits import ImageLimits

_log = logging.getLogger(__name__)

# NNCF's own default: ranges hardly move after as many.
MOST_IMAGES = 300

# With fewer, a single odd picture sets the ranges.
_MANY_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images of the kind that will be served. `digest` is over their bytes: another set gives other answers."""

    files: tuple[Path, ...]
    digest: str

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The first 300 files of `folder`, by name. Raises StartError when there is none."""
        if not folder.is_dir():
            raise StartError(f"the calibration folder {folder} is not there")
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not files:
            raise StartError(f"the calibration folder {folder} has no files")
        return cls.of_files(files[:MOST_IMAGES])

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Self:
        """Those files, one at least. Raises OSError for one that cannot be read."""
        digest = hashlib.sha256()
        for path in files:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return cls(tuple(files), digest.hexdigest()[:16])

    @classmethod
    def wanted(cls, precision: Precision, folder: Path | None) -> Self | None:
        """Of `folder` for int8, which needs one; None for every other precision. Raises StartError."""
        if precision != "int8":
            return None
        if folder is None:
            raise StartError("int8 is calibrated on images of yours: it needs a calibration folder")
        return cls.of(expand_home(folder))

    def batches(self, transform: Transform) -> list[NDArray[np.uint8]]:
        """Each image as requests would have it, (1, side, side, 3). What is no image is left out with a warning.

        Raises StartError when nothing is left.
        """
        batches = list(self._readable(transform))
        if not batches:
            raise StartError(f"none of the {len(self.files)} files in {self.files[0].parent} is an image")
        if len(batches) < _MANY_IMAGES:
            _log.warning("int8 is calibrated on %d images only; some hundred give steadier ranges", len(batches))
        return batches

    def _readable(self, transform: Transform) -> Iterator[NDArray[np.uint8]]:
        for path in self.files:
            try:
                pixels = preprocess(path.read_bytes(), transform, ImageLimits())
            except ImageError as error:
                _log.warning("%s is left out of the calibration: %s", path, error)
            else:
                yield np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())[None]
