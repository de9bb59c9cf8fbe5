"""Former names of the lens, which is now the package `gradless`."""

from gradless import budget, compare, retained_bytes
from gradless.errors import ComparisonCancelledError as ComparisonAbandonedError
from gradless.memory import prepare_profiler
from models.serving.lens import compare_served

__all__ = ["ComparisonAbandonedError", "budget", "compare", "compare_served", "prepare_profiler", "retained_bytes"]
