"""One inference request, from the HTTP side to the batch that answers it."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Self

from models.interface.cancellation import NEVER_CANCELLED, CancelToken
from models.interface.telemetry import Task

_new_fairness_key = itertools.count().__next__

# Task, top_k and fairness key.
Parameters = tuple[Task, int, Hashable]


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a client asks of a model.

    `images` are encoded files; they are removed once the request is split into jobs, one per image. `top_k` is the
    number of classes per image; 0 asks for features alone. `cancel_token` is cancelled when the client disconnects.
    The queue takes turns between fairness keys, so one request with many images does not hold up the others. The
    default is a number below 2**64 that no other request of the process has.
    """

    task: Task
    images: Sequence[bytes] = ()
    top_k: int = 0
    cancel_token: CancelToken = NEVER_CANCELLED
    fairness_key: Hashable = field(default_factory=_new_fairness_key)

    @property
    def parameters(self) -> Parameters:
        """What another process needs of the request, cheap to pickle. Files and cancel token stay in this process."""
        return self.task, self.top_k, self.fairness_key

    @classmethod
    def received(cls, parameters: Parameters, process: int, cancel_token: CancelToken) -> Self:
        """Return the request of another process. Processes number their requests independently, so the fairness key
        names the process."""
        task, top_k, fairness_key = parameters
        return cls(task, (), top_k, cancel_token, (process, fairness_key))
