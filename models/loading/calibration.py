"""Images for int8 calibration: the ranges of activations inside the network follow from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.images.preprocessing import Transform, preprocess
from models.interface.errors import ImageError, StartError
from models.interface.model_sources import Precision, expand_home
from models.interface.request import ImageLimits

_log = logging.getLogger(__name__)

# NNCF's default: more images hardly change the ranges.
MOST_IMAGES = 300

# With fewer images, a single unusual one determines the ranges.
_MANY_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images of the kind that will be served. `digest` is over their bytes, because other images give other results."""

    files: tuple[Path, ...]
    digest: str

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Use the first 300 files of `folder` by name. Raises StartError if there is none."""
        if not folder.is_dir():
            raise StartError(f"the calibration folder {folder} is not there")
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not files:
            raise StartError(f"the calibration folder {folder} has no files")
        return cls.of_files(files[:MOST_IMAGES])

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Self:
        """Use those files, at least one. Raises OSError for a file that cannot be read."""
        digest = hashlib.sha256()
        for path in files:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return cls(tuple(files), digest.hexdigest()[:16])

    @classmethod
    def for_precision(cls, precision: Precision, folder: Path | None) -> Self | None:
        """Use `folder` for int8, which needs one; None for every other precision. Raises StartError."""
        if precision != "int8":
            return None
        if folder is None:
            raise StartError("int8 is calibrated on images of yours: it needs a calibration folder")
        return cls.of(expand_home(folder))

    def batches(self, transform: Transform) -> list[NDArray[np.uint8]]:
        """Return each image preprocessed as for a request, (1, side, side, 3). Other files are skipped with a warning.

        Raises StartError if no image remains.
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
