"""The errors of the inference side. They carry facts; app/http/problems.py maps them to HTTP statuses.

GradlessError
├── StartError                      the process cannot start; the message is one line
│   ├── UnknownCatalogNameError
│   ├── UnknownSourceError
│   ├── UnsupportedArchitectureError
│   ├── WeightsUnavailableError
│   ├── ModelFolderError            a file of a model folder cannot be served
│   ├── DeviceUnavailableError
│   ├── WarmUpError
│   │   └── DisagreementError       the backend's outputs differ from those of PyTorch
│   ├── SearchIndexError            the index is damaged or belongs to another model
│   └── JobError                    a job over files cannot run as requested
├── ImageError                      one image is at fault; only this image fails
│   ├── EmptyImageError
│   ├── ImageTooLargeError
│   ├── UnsupportedFormatError
│   ├── UndecodableImageError
│   ├── TooManyPixelsError
│   ├── TooElongatedError
│   ├── TooCostlyError
│   ├── UnfitPixelsError            ready pixels have another shape or range than the network takes
│   └── NotFiniteError
├── RefusedError                    the service did not accept the image or did not answer in time
│   ├── AtCapacityError             a limit is reached; the error says when to try again
│   │   ├── OverloadedError
│   │   ├── BodyMemoryFullError
│   │   ├── TooManyCallsError
│   │   └── DecodersBusyError
│   ├── DrainingError
│   ├── ModelDownError
│   ├── ModelGoneError
│   ├── OutOfMemoryError
│   └── DeadlineExceededError
├── UnknownModelError
├── NoClassesError                  the model has features alone
├── NotChangedError                 a load or unload failed; the served models are unchanged
│   ├── ModelNotLoadedError
│   ├── NoRoomError
│   ├── LoadTimeoutError
│   ├── ModelChangingError
│   ├── TooManyModelsError
│   └── LastModelError
├── ForwardError                    the forward of a whole batch failed
├── ComparisonRunningError          another comparison is running
└── ComparisonTooLargeError         the comparison would exceed the allowed memory or time
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

# The root of the tree and the errors of the lens library, exported again.
from gradless.errors import ComparisonTooLargeError as ComparisonTooLargeError  # noqa: PLC0414
from gradless.errors import GradlessError as GradlessError  # noqa: PLC0414


class StartError(GradlessError):
    """The process cannot start. The message is one line that says what to do."""


class UnknownCatalogNameError(StartError):
    def __init__(self, name: str, similar: Sequence[str]) -> None:
        hint = f"; did you mean {', '.join(similar)}?" if similar else ""
        super().__init__(f"no model is named {name!r}{hint}")


class UnknownSourceError(StartError):
    def __init__(self, source: str, reason: str) -> None:
        # Clients can send anything, so the message has a limited length.
        super().__init__(f"no model at {source[:100]!r}: {reason}")


class UnsupportedArchitectureError(StartError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be served: {reason}")
        self.reason = reason


class WeightsUnavailableError(StartError):
    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"the weights of {name} are not available: {reason}. {remedy}")


class ModelFolderError(StartError):
    """`file` cannot be served; `key` is the key in it that is at fault, if any."""

    def __init__(self, file: Path, reason: str, key: str | None = None) -> None:
        # Some reasons are messages of other libraries, with several lines.
        reason = " ".join(reason.split())
        super().__init__(f"{file}: {reason}" if key is None else f"{file}: {key}: {reason}")
        self.file, self.reason, self.key = file, reason, key


class DeviceUnavailableError(StartError):
    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device!r} cannot be used: {reason}")


class WarmUpError(StartError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} failed its warm-up: {reason}")


class DisagreementError(WarmUpError):
    def __init__(self, model: str, backend: str, difference: float, tolerance: float) -> None:
        super().__init__(
            model,
            f"for a test picture {backend} gives other numbers than PyTorch in float32: the relative difference is "
            f"{difference:.2g}, and at most {tolerance:g} is allowed; try another precision or backend",
        )


class SearchIndexError(StartError):
    def __init__(self, folder: object, reason: str) -> None:
        super().__init__(f"the search index {folder} cannot be used: {reason}")


class JobError(StartError):
    """A job over files cannot start or resume as requested."""


class ImageError(GradlessError):
    """One image cannot be answered. Other images of its request are not affected."""


class EmptyImageError(ImageError):
    def __init__(self) -> None:
        super().__init__("The image has no bytes.")


class ImageTooLargeError(ImageError):
    """`name` and `size_bytes` describe the file, if they are known."""

    def __init__(self, limit_bytes: int, *, name: str | None = None, size_bytes: int | None = None) -> None:
        which = f"The image {name}" if name else "The image"
        size = "" if size_bytes is None else f": it has {size_bytes / 1e6:.3g} MB"
        super().__init__(f"{which} is larger than {limit_bytes} bytes{size}.")


class UnsupportedFormatError(ImageError):
    """`recognised`: what the bytes are, if they are known, and why it is not read."""

    def __init__(self, formats: Sequence[str], recognised: str | None = None) -> None:
        known = f" They are {recognised}." if recognised else ""
        super().__init__(f"The bytes are not an image of a format read here: {', '.join(formats)}.{known}")
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


class TooCostlyError(ImageError):
    """The decode would exceed or has exceeded the allowed CPU time or memory. `reason` is a clause that says so."""

    def __init__(self, image_format: str | None, reason: str) -> None:
        what = f"{image_format} image" if image_format else "image"
        super().__init__(f"The {what} is too expensive to decode: {reason}.")
        self.image_format = image_format


class UnfitPixelsError(ImageError):
    """Ready pixels have another shape or range than the network takes. `reason` is a clause that says so."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The pixels do not fit the network: {reason}.")


class NotFiniteError(ImageError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} gave outputs that are not finite for this image")


class RefusedError(GradlessError):
    """The image was not accepted or not answered in time, for reasons other than its content."""


class AtCapacityError(RefusedError):
    """A limit of the service is reached. After `retry_after_s` whole seconds there is likely capacity again."""

    def __init__(self, reason: str, expected_seconds: float) -> None:
        self.retry_after_s = max(1, math.ceil(expected_seconds))
        super().__init__(f"{reason}; try again in {self.retry_after_s} s.")


class OverloadedError(AtCapacityError):
    def __init__(self, capacity: int, expected_seconds: float) -> None:
        super().__init__(f"The model is at its capacity of {capacity} images", expected_seconds)
        self.capacity = capacity


class BodyMemoryFullError(AtCapacityError):
    """The bodies of all current requests fill the memory that is allowed for them."""

    def __init__(self, limit_bytes: int) -> None:
        # Bodies come and go within milliseconds to seconds; there is no better estimate.
        super().__init__(f"The bodies of current requests fill {limit_bytes} bytes", 0)


class TooManyCallsError(AtCapacityError):
    """`limit` calls of gRPC are unfinished; with `slow`, `limit` messages take long to arrive."""

    def __init__(self, limit: int, *, slow: bool = False) -> None:
        what = "messages that take over a second to arrive are being received" if slow else "calls are unfinished"
        super().__init__(f"{limit} {what}", 0)


class DecodersBusyError(AtCapacityError):
    """The expensive images in the queue take longer to decode than a client waits."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"The queued expensive images take {wait_s:.0f} s to decode", wait_s)


class DrainingError(RefusedError):
    def __init__(self) -> None:
        super().__init__("The service is stopping: it answers accepted requests and accepts no new ones.")


class ModelDownError(RefusedError):
    """The model's forward hung or its batcher lost a thread; the supervisor restarts it."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} stopped working and is being restarted.")


class ModelGoneError(RefusedError):
    """The model was replaced or unloaded while it had the request."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} was replaced or unloaded during the request.")


class OutOfMemoryError(RefusedError):
    def __init__(self, model: str) -> None:
        super().__init__(f"The device of {model} has too little memory for even one image.")


class DeadlineExceededError(RefusedError):
    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"There was no answer within {deadline_s:g} s.")


class UnknownModelError(GradlessError):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        # Clients can send anything, so the message has a limited length.
        super().__init__(f"No model {name[:100]!r} is served here; the served models are {', '.join(known)}.")


class NoClassesError(GradlessError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} has no classes; use /v1/features instead.")


class NotChangedError(GradlessError):
    """A model was not loaded, replaced or unloaded. The served models are unchanged."""


class ModelNotLoadedError(NotChangedError):
    """`reason` is one line without secrets, for clients with the right to load models."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} was not loaded: {reason}")


class NoRoomError(NotChangedError):
    """There is too little memory. A new version needs it in addition to the old one, which serves until then."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"There is no memory for {model} alongside the served models: {reason}")
        self.reason = reason


class LoadTimeoutError(NotChangedError):
    """The load timed out, or cannot start because earlier loads have not ended."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} was not loaded: {reason}")


class ModelChangingError(NotChangedError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is being loaded or unloaded; try again after that.")


class TooManyModelsError(NotChangedError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} models are served, which is the limit; unload one first.")


class LastModelError(NotChangedError):
    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is the only model that is served; load another one first.")


class ForwardError(GradlessError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"the forward of {model} failed: {reason}")


class ComparisonRunningError(GradlessError):
    def __init__(self) -> None:
        super().__init__("A comparison is running; try again after that.")
