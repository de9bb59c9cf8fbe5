"""A service whose fronts end before they serve."""

from __future__ import annotations

from app.fronts import processes
from app.settings import load_settings


def end(*_: object) -> None:
    raise SystemExit(3)


if __name__ == "__main__":
    processes.run_front = end
    processes.serve_by_fronts(load_settings(), 2)
