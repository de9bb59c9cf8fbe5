"""Everything that can go wrong, as facts. What status an error has over HTTP is app/problems.py's business.

GradlessError
├── StartError                      the process must not start; the message is one clear line
│   ├── UnknownCatalogNameError
│   ├── UnsupportedArchitectureError
│   ├── WeightsUnavailableError
│   ├── DeviceUnavailableError
│   └── WarmUpError
├── ImageError                      one image's own fault: it fails alone
│   ├── EmptyImageError
│   ├── ImageTooLargeError
│   ├── UnsupportedFormatError
│   ├── UndecodableImageError
│   ├── TooManyPixelsError
│   ├── TooElongatedError
│   └── NotFiniteError
├── RefusedError                    no fault of the image: the service did not take it, or not in time
│   ├── OverloadedError
│   ├── DrainingError
│   └── DeadlineExceededError
├── UnknownModelError
├── ForwardError                    the network failed for a whole batch
└── ComparisonRunningError          the lens is at work for somebody else
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class GradlessError(Exception):
    """The root of the tree."""


class StartError(GradlessError):
    """The process must not start. The message is one line that says what to do."""


class UnknownCatalogNameError(StartError):
    def __init__(self, name: str, similar: Sequence[str]) -> None:
        hint = f"; did you mean {', '.join(similar)}?" if similar else ""
        super().__init__(f"no model is named {name!r}{hint}")
        self.name = name


class UnsupportedArchitectureError(StartError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be served: {reason}")
        self.name = name


class WeightsUnavailableError(StartError):
    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"the weights of {name} cannot be had: {reason}. {remedy}")
        self.name = name


class DeviceUnavailableError(StartError):
    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device {device!r} cannot be used: {reason}")
        self.device = device


class WarmUpError(StartError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} failed its warm-up: {reason}")
        self.model = model


class ImageError(GradlessError):
    """One image cannot be answered, and why. No other image is touched by it."""


class EmptyImageError(ImageError):
    def __init__(self) -> None:
        super().__init__("The image has no bytes.")


class ImageTooLargeError(ImageError):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The image is larger than {limit_bytes} bytes.")
        self.limit_bytes = limit_bytes


class UnsupportedFormatError(ImageError):
    def __init__(self, formats: Sequence[str]) -> None:
        super().__init__(f"The bytes are not an image of a format read here: {', '.join(formats)}.")
        self.formats = tuple(formats)


class UndecodableImageError(ImageError):
    def __init__(self, image_format: str, reason: str) -> None:
        super().__init__(f"The {image_format} image cannot be decoded: {reason}.")
        self.image_format = image_format


class TooManyPixelsError(ImageError):
    def __init__(self, width: int, height: int, limit: int) -> None:
        super().__init__(f"The image has {width} x {height} pixels; at most {limit} are decoded.")
        self.width, self.height, self.limit = width, height, limit


class TooElongatedError(ImageError):
    def __init__(self, width: int, height: int, limit: int) -> None:
        super().__init__(f"The image is {width} x {height}: its sides differ more than {limit} to 1.")
        self.width, self.height, self.limit = width, height, limit


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


class DrainingError(RefusedError):
    def __init__(self) -> None:
        super().__init__("The service is stopping: it answers what it has accepted and takes nothing new.")


class DeadlineExceededError(RefusedError):
    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"There was no answer within {deadline_s:g} s.")
        self.deadline_s = deadline_s


class UnknownModelError(GradlessError):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        # No more of it than a name would have: callers can send anything.
        super().__init__(f"No model {name[:100]!r} is served here; there is {', '.join(known)}.")
        self.name, self.known = name, tuple(known)


class ForwardError(GradlessError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"the forward of {model} failed: {reason}")
        self.model = model


class ComparisonRunningError(GradlessError):
    def __init__(self) -> None:
        super().__init__("A comparison is running; one at a time.")
