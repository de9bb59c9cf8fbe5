"""What Python's garbage collector looks through while a process serves."""

from __future__ import annotations

import gc


def freeze_loaded_objects() -> None:
    """Of every collection to come: what is loaded by now, some 440,000 objects, lives as long as the process. A full
    collection that looks through them took 0.24 s on two cores, in which nobody is answered, and next to nothing
    without them."""
    gc.collect()
    gc.freeze()


def take_in_everything() -> None:
    """At the end of a process: what is left out is not taken apart with it, and extension modules complain of that."""
    gc.unfreeze()
