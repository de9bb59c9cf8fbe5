"""The lens as a library: what gradients cost a forward pass.

`retained_bytes(lambda: model(images))` returns one number for any model; `compare(model, images)` returns the whole
comparison. The records in `gradless.records` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradless.lens import compare, compare_served
    from gradless.peak import prepare_profiler
    from gradless.progress import ComparisonAbandonedError
    from gradless.retained import retained_bytes

__all__ = ["ComparisonAbandonedError", "compare", "compare_served", "prepare_profiler", "retained_bytes"]

_MODULES = {
    "ComparisonAbandonedError": "gradless.progress",
    "compare": "gradless.lens",
    "compare_served": "gradless.lens",
    "prepare_profiler": "gradless.peak",
    "retained_bytes": "gradless.retained",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
