"""The former name of the package `gradless`."""

from gradless import compare, retained_bytes

__all__ = ["compare", "retained_bytes"]
