"""Errors of a comparison, and the root of all errors of gradless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal


class GradlessError(Exception):
    """Root of the error tree. An instance can be pickled, with its message and its attributes."""

    def __reduce__(
        self,
    ) -> tuple[Callable[..., GradlessError], tuple[type[GradlessError], tuple[Any, ...]], dict[str, Any]]:
        # Exception.__reduce__ calls the class with the message; most classes here take other arguments.
        return _restore, (type(self), self.args), self.__dict__


def _restore(error_type: type[GradlessError], args: tuple[Any, ...]) -> GradlessError:
    error = error_type.__new__(error_type)
    error.args = args
    return error


class ComparisonTooLargeError(GradlessError):
    """The comparison was predicted to need more than is allowed: bytes at once, seconds in all, or per forward."""

    def __init__(
        self, batch_size: int, what: Literal["bytes", "seconds", "forward seconds"], needed: float, allowed: float
    ) -> None:
        self.batch_size, self.what, self.needed, self.allowed = batch_size, what, needed, allowed
        figures = {
            "bytes": f"need about {needed / 1e6:.0f} MB of memory; {allowed / 1e6:.0f} MB, three quarters of what is "
            "free, are allowed",
            "seconds": f"take about {needed:.0f} s; {allowed:.0f} s are allowed",
            "forward seconds": f"delay requests by about {needed:.0f} s per forward; {allowed:.0f} s are allowed",
        }
        super().__init__(f"A comparison at batch size {batch_size} would {figures[what]}.")


class ComparisonCancelledError(Exception):
    """The comparison was cancelled before its next forward."""
