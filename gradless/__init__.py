"""Measure what autograd costs a forward pass of any PyTorch model.

`retained_bytes(lambda: model(images))` returns the bytes that autograd keeps for a backward pass.
`compare(model, images)` runs one batch in each autograd mode and returns a report. The package needs torch alone. The
records of the report, in `gradless.records`, are imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradless.comparison import compare
    from gradless.retained import retained_bytes

    __version__: str

__all__ = ["__version__", "compare", "retained_bytes"]

# Importing a submodule sets an attribute of its name here: none may be called like a function.
_MODULES = {"compare": "gradless.comparison", "retained_bytes": "gradless.retained"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("gradless")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
