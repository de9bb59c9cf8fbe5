"""The lens: what gradients cost. `retained_bytes(lambda: model(images))` for one number, of any model; `compare(model,
images)` for all there is to say."""

from models.gradmodes.course import ComparisonAbandonedError
from models.gradmodes.peak import prepare_profiler
from models.gradmodes.retained import retained_bytes
from models.gradmodes.ways_in import compare, compare_served

__all__ = ["ComparisonAbandonedError", "compare", "compare_served", "prepare_profiler", "retained_bytes"]
