"""One inference request, from the HTTP side to its batch: images, limits on them, and its cancel token."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from numpy.typing import NDArray

from models.interface.telemetry import Task


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits that are checked on an image's header.

    max_pixels: width x height.
    max_aspect_ratio: long side / short side. It protects the resize, which enlarges the short side to the model's
        input size: 1 x 65535 pixels would become 256 x 16 million.
    max_decode_seconds: predicted CPU seconds of a decode (models/images/formats.py).
    max_decode_bytes: predicted memory of a decode, and of all concurrent expensive decodes together.
    """

    max_pixels: int = 50_000_000
    max_aspect_ratio: int = 50
    max_decode_seconds: float = 1.0
    max_decode_bytes: int = 224 * 2**20


class AllCancelledError(Exception):
    """A forward was stopped because every request in its batch was cancelled. No client receives this error."""


class CancelToken:
    """Say whether some work was cancelled. A token that was cancelled stays so.

    Any thread may read `cancelled` and call `cancel`. Neither takes a lock: decode and forward threads poll the token.
    A token is also cancelled once its `parent` is.
    """

    __slots__ = ("_cancelled", "_parent")

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._cancelled = False
        self._parent = parent

    @property
    def cancelled(self) -> bool:
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    def cancel(self) -> None:
        self._cancelled = True

    def raise_if_cancelled(self) -> None:
        """Raise AllCancelledError if the token is cancelled."""
        if self.cancelled:
            raise AllCancelledError


class NeverCancelled(CancelToken):
    """The token of work without a client, such as a warm-up. `cancel` has no effect."""

    __slots__ = ()

    def cancel(self) -> None:
        pass


class AllCancelled(CancelToken):
    """The token of a batch: cancelled once each of `tokens` is."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: Collection[CancelToken]) -> None:
        super().__init__()
        self._tokens = tokens

    @property
    def cancelled(self) -> bool:
        return self._cancelled or all(token.cancelled for token in self._tokens)


NEVER_CANCELLED = NeverCancelled()


@dataclass(frozen=True, slots=True)
class ReadyPixels:
    """An image that its client has already resized and cropped for the network. It is not decoded.

    `values` is (3, side, side) in any memory layout: integers of 0..255, or floats of 0..255. With `normalized` the
    floats are (p / 255 - mean) / std, as the network takes them. With `bfloat16` the values are uint16, the upper
    halves of float32 numbers.
    """

    values: NDArray[Any]
    normalized: bool = False
    bfloat16: bool = False


# An encoded file, or ready pixels.
Image = bytes | ReadyPixels

_new_fairness_key = itertools.count().__next__

# Task, top_k, all_probabilities and fairness key.
Parameters = tuple[Task, int, bool, Hashable]


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a client asks of a model.

    `images` are removed once the request is split into jobs, one per image. `top_k` is the number of classes per image,
    and `all_probabilities` asks for the probabilities of all classes; without both, features are returned alone.
    `cancel_token` is cancelled when the client disconnects. The queue takes turns between fairness keys, so one request
    with many images does not hold up the others. The default is a number below 2**64 that no other request of the
    process has.
    """

    task: Task
    images: Sequence[Image] = ()
    top_k: int = 0
    all_probabilities: bool = False
    cancel_token: CancelToken = NEVER_CANCELLED
    fairness_key: Hashable = field(default_factory=_new_fairness_key)

    @property
    def parameters(self) -> Parameters:
        """What another process needs of the request, cheap to pickle. Images and cancel token stay in this process."""
        return self.task, self.top_k, self.all_probabilities, self.fairness_key

    @classmethod
    def received(cls, parameters: Parameters, process: int, cancel_token: CancelToken) -> Self:
        """Return the request of another process. Processes number their requests independently, so the fairness key
        names the process."""
        task, top_k, all_probabilities, fairness_key = parameters
        return cls(task, (), top_k, all_probabilities, cancel_token, (process, fairness_key))
