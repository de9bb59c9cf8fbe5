"""Decode and forward in one process, without files, processes and output. A script; prints images a second."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.ceilings import CACHE, together
from models import backends
from models.backends import BackendOptions
from models.hardware import memory
from models.inference.engine import Engine
from models.loading import catalog
from models.loading.load import load


def main(folder: Path, seconds: float) -> None:
    """Print the rate on the pictures of `folder`."""
    memory.retain_freed_pages()
    model = load(catalog.find(catalog.DEFAULT_MODEL), backends.place("auto", "fp32", "auto"))
    engine = Engine(model, backends.make(model, BackendOptions(max_batch_size=32, cache_folder=CACHE)))
    bodies = [path.read_bytes() for path in sorted(folder.iterdir())]
    sys.stdout.write(f"{together(bodies, engine, seconds):.3f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
