"""Everything that can go wrong, as facts. What status an error has over HTTP is app/http/problems.py's business.

GradlessError
├── StartError                      the process must not start; the message is one clear line
│   ├── UnknownCatalogNameError
│   ├── UnknownSourceError
│   ├── UnsupportedArchitectureError
│   ├── WeightsUnavailableError
│   ├── ModelFolderError            a file of a model folder says what cannot be served
│   ├── DeviceUnavailableError
│   ├── WarmUpError
│   │   └── DisagreementError       its backend gives other numbers than PyTorch
│   ├── SearchIndexError            of nearest neighbours: broken, or of another model
│   └── JobError                    a job over files cannot be done as asked
├── ImageError                      one image's own fault: it fails alone
│   ├── EmptyImageError
│   ├── ImageTooLargeError
│   ├── UnsupportedFormatError
│   ├── UndecodableImageError
│   ├── TooManyPixelsError
│   ├── TooElongatedError
│   ├── TooCostlyError
│   └── NotFiniteError
├── RefusedError                    no fault of the image: the service did not take it, or not in time
│   ├── OverloadedError
│   ├── DecodersBusyError
│   ├── DrainingError
│   ├── ModelDownError
│   ├── ModelGoneError
│   ├── OutOfMemoryError
│   └── DeadlineExceededError
├── UnknownModelError
├── NoClassesError                  it gives features alone
├── NotChangedError                 what is served stays as it was
│   ├── ModelNotLoadedError
│   ├── NoRoomError
│   ├── LoadTimeoutError
│   ├── ModelChangingError
│   ├── TooManyModelsError
│   └── LastModelError
├── ForwardError                    the network failed for a whole batch
├── ComparisonRunningError          the lens is at work for somebody else
└── ComparisonTooLargeError         it would take more memory or time than there is for it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

# The root of the tree and the errors of the lens library, exported again.
from gradless.errors import ComparisonTooLargeError as ComparisonTooLargeError  # noqa: PLC0414
from gradless.errors import GradlessError as GradlessError  # noqa: PLC0414


class StartError(GradlessError):
    """The process must not start. The message is one line that says what to do."""


class UnknownCatalogNameError(StartError):
    def __init__(self, name: str, similar: Sequence[str]) -> None:
        hint = f"; did you mean {', '.join(similar)}?" if similar else ""
        super().__init__(f"no model is named {name!r}{hint}")
        self.name = name


class UnknownSourceError(StartError):
    def __init__(self, source: str, reason: str) -> None:
        # No more of it than a name would have: callers can send anything.
        super().__init__(f"there is no model in {source[:100]!r}: {reason}")
        self.source = source


class UnsupportedArchitectureError(StartError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be served: {reason}")
        self.name, self.reason = name, reason


class WeightsUnavailableError(StartError):
    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"the weights of {name} cannot be had: {reason}. {remedy}")
        self.name = name


class ModelFolderError(StartError):
    """`file` cannot be served as it is; `key`: where in it, if it has keys."""

    def __init__(self, file: Path, reason: str, key: str | None = None) -> None:
        # Other people's words are in some reasons, over several lines.
        said = " ".join(reason.split())
        super().__init__(f"{file}: {said}" if key is None else f"{file}: {key}: {said}")
        self.file, self.reason, self.key = file, said, key


class DeviceUnavailableError(StartError):
    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device!r} cannot be used: {reason}")
        self.device = device


class WarmUpError(StartError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} failed its warm-up: {reason}")
        self.model = model


class DisagreementError(WarmUpError):
    """`difference` and `tolerance` are relative to the numbers that PyTorch gives."""

    def __init__(self, model: str, backend: str, difference: float, tolerance: float) -> None:
        super().__init__(
            model,
            f"for a drawn picture {backend} gives other numbers than PyTorch in float32: the difference is "
            f"{difference:.2g} of them, and at most {tolerance:g} is allowed; try another precision or backend",
        )
        self.backend, self.difference, self.tolerance = backend, difference, tolerance


class SearchIndexError(StartError):
    def __init__(self, folder: object, reason: str) -> None:
        super().__init__(f"the search index {folder} cannot be used: {reason}")
        self.folder = folder


class JobError(StartError):
    """A job over files cannot begin, or not go on, as it was asked for."""


class ImageError(GradlessError):
    """One image cannot be answered, and why. No other image is touched by it."""


class EmptyImageError(ImageError):
    def __init__(self) -> None:
        super().__init__("The image has no bytes.")


class ImageTooLargeError(ImageError):
    """`name` and `size_bytes` of the file, where they are known."""

    def __init__(self, limit_bytes: int, *, name: str | None = None, size_bytes: int | None = None) -> None:
        which = f"The image {name}" if name else "The image"
        size = "" if size_bytes is None else f": it has {size_bytes / 1e6:.3g} MB"
        super().__init__(f"{which} is larger than {limit_bytes} bytes{size}.")
        self.limit_bytes = limit_bytes


class UnsupportedFormatError(ImageError):
    def __init__(self, formats: Sequence[str]) -> None:
        super().__init__(f"The bytes are not an image of a format read here: {', '.join(formats)}.")
        self.formats = tuple(formats)


class UndecodableImageError(ImageError):
    def __init__(self, image_format: str | None, reason: str) -> None:
        what = f"{image_format} image" if image_format else "image"
        super().__init__(f"The {what} cannot be decoded: {reason}.")
        self.image_format, self.reason = image_format, reason


class TooManyPixelsError(ImageError):
    def __init__(self, width: int, height: int, limit: int) -> None:
        super().__init__(f"The image has {width} x {height} pixels; at most {limit} are decoded.")
        self.width, self.height, self.limit = width, height, limit


class TooElongatedError(ImageError):
    def __init__(self, width: int, height: int, limit: int) -> None:
        super().__init__(f"The image is {width} x {height}: its sides differ more than {limit} to 1.")
        self.width, self.height, self.limit = width, height, limit


class TooCostlyError(ImageError):
    """Its decode would take, or took, more CPU time or memory than is allowed. `reason` is a clause that says so."""

    def __init__(self, image_format: str | None, reason: str) -> None:
        what = f"{image_format} image" if image_format else "image"
        super().__init__(f"The {what} is too expensive to decode: {reason}.")
        self.image_format = image_format


class NotFiniteError(ImageError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} gave no finite numbers for this image")
        self.model = model


class RefusedError(GradlessError):
    """The image was not taken, or not answered in time, whatever is in it."""


class OverloadedError(RefusedError):
    """`retry_after_s` is the least whole number of seconds, 1 or more, after which a place is likely."""

    def __init__(self, capacity: int, expected_seconds: float) -> None:
        self.capacity, self.retry_after_s = capacity, max(1, math.ceil(expected_seconds))
        super().__init__(f"All {capacity} places for images are taken; try again in {self.retry_after_s} s.")


class DecodersBusyError(RefusedError):
    """More expensive images wait for a decoder than can be decoded in time. `retry_after_s`: as of OverloadedError."""

    def __init__(self, wait_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(
            f"Expensive images that wait will take {wait_s:.0f} s to decode; try again in {self.retry_after_s} s."
        )


class DrainingError(RefusedError):
    def __init__(self) -> None:
        super().__init__("The service is stopping: it answers what it has accepted and takes nothing new.")


class ModelDownError(RefusedError):
    """Its forward hung or its batcher died, and another takes its place."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} stopped working and is being started anew.")
        self.model = model


class ModelGoneError(RefusedError):
    """Another version has taken its place, or none."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} was replaced or unloaded meanwhile.")
        self.model = model


class OutOfMemoryError(RefusedError):
    def __init__(self, model: str) -> None:
        super().__init__(f"The device of {model} has no memory left, not even for one image.")
        self.model = model


class DeadlineExceededError(RefusedError):
    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"There was no answer within {deadline_s:g} s.")
        self.deadline_s = deadline_s


class UnknownModelError(GradlessError):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        # No more of it than a name would have: callers can send anything.
        super().__init__(f"No model {name[:100]!r} is served here; there is {', '.join(known)}.")
        self.name, self.known = name, tuple(known)


class NoClassesError(GradlessError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} has no classes to name; ask /v1/features for what it gives.")
        self.model = model


class NotChangedError(GradlessError):
    """A model was not loaded, replaced or unloaded: what was served before still is."""


class ModelNotLoadedError(NotChangedError):
    """`reason` is one line, fit to be shown to whoever may load models."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} was not loaded: {reason}")
        self.model, self.reason = model, reason


class NoRoomError(NotChangedError):
    """While one version takes over from another, there is memory for both."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"There is no memory for {model} beside what is served: {reason}")
        self.model, self.reason = model, reason


class LoadTimeoutError(NotChangedError):
    """It had not loaded in time, or cannot begin to, because others before it have not ended."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} was not loaded: {reason}")
        self.model, self.reason = model, reason


class ModelChangingError(NotChangedError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is being loaded or unloaded; one at a time.")
        self.model = model


class TooManyModelsError(NotChangedError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} models are served, and no more are allowed; unload one first.")
        self.limit = limit


class LastModelError(NotChangedError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is the only model that is served; load another one first.")
        self.model = model


class ForwardError(GradlessError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"the forward of {model} failed: {reason}")
        self.model = model


class ComparisonRunningError(GradlessError):
    def __init__(self) -> None:
        super().__init__("A comparison is running; one at a time.")
