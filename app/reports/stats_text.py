"""The result of `gradless stats` as lines for model.toml, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any

from models.offline.files import name

if TYPE_CHECKING:
    from models.offline.survey import Survey

# Sizes listed: a folder of photographs may have many.
_COMMON_SIZES = 5

_PLACES = 6


def as_toml(found: Survey, served_as: str | None) -> list[str]:
    """Return lines for model.toml, other facts as comments. `found` has at least one image."""
    sizes = found.sizes.most_common(_COMMON_SIZES)
    rest = len(found.sizes) - len(sizes)
    return [
        f"# {found.images} images: {_counted(found.formats)}",
        f"# width {_span(found, 0)}, height {_span(found, 1)} px (min / median / max)",
        f"# most common: {', '.join(f'{width} x {height} ({times})' for (width, height), times in sizes)}"
        + (f"; and {rest} other sizes" if rest else ""),
        f"# of {found.moments.count} pixels"
        + (" in full size" if served_as is None else f", resized and cropped as for {served_as}"),
        "[transform]",
        f"mean = [{', '.join(_figures(found.moments.mean))}]",
        f"std = [{', '.join(_figures(found.moments.std))}]",
    ]


def _figures(values: Any) -> list[str]:
    return [f"{value:.{_PLACES}f}" for value in values.tolist()]


def _counted(formats: Counter[str]) -> str:
    return ", ".join(f"{times} {name}" for name, times in formats.most_common())


def _sides(found: Survey, axis: int) -> Counter[int]:
    sides: Counter[int] = Counter()
    for size, times in found.sizes.items():
        sides[size[axis]] += times
    return sides


def _span(found: Survey, axis: int) -> str:
    least, middle, most = _least_median_most(_sides(found, axis))
    return f"{least} / {middle:g} / {most}"


def _least_median_most(sides: Counter[int]) -> tuple[int, float, int]:
    return min(sides), median(sorted(sides.elements())), max(sides)


def as_json(found: Survey, served_as: str | None, *, complete: bool) -> str:
    """Return all results as JSON. `complete` says that no file was skipped. `found` has at least one image."""
    sides = {}
    for axis, side in enumerate(("width", "height")):
        sides[side] = dict(zip(("least", "median", "most"), _least_median_most(_sides(found, axis)), strict=True))
    report = {
        "complete": complete,
        "images": found.images,
        "pixels": found.moments.count,
        "as_served": served_as,
        "mean": found.moments.mean.tolist(),
        "std": found.moments.std.tolist(),
        "formats": dict(found.formats.most_common()),
        **sides,
        "sizes": [
            {"width": width, "height": height, "images": times} for (width, height), times in found.sizes.most_common()
        ],
        "broken": [{"path": name(path), "reason": reason} for path, reason in found.broken.items()],
    }
    return json.dumps(report, indent=2) + "\n"
