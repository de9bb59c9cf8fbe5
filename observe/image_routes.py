"""The routes that accept images, in all protocols: dashboards, recording rules and alerts count requests of these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from observe import PROMETHEUS, ROOT

# Values of the label `route`. The page also has `/`, by another method.
IMAGE_ROUTES = (
    "/v1/classify",
    "/v1/features",
    "/v1/predict",
    "/v1/search",
    "/v1/embeddings",
    "/v1/models/{name}:predict",
    "/v2/models/{name}/infer",
    "/inference.GRPCInferenceService/ModelInfer",
    "/predictions/{name}",
    "/invocations",
    "/hf/{name}",
    "/",
)

# A selector of these in PromQL, whose regular expressions match whole values.
SELECTOR = 'route=~"{}"'.format("|".join(IMAGE_ROUTES).replace("{name}", ".+"))


def files() -> Iterator[tuple[Path, str]]:
    """Yield each file that repeats these routes, and its content with the routes of the table."""
    for name in ("recording.yml", "alerts.yml"):
        path = PROMETHEUS / "rules" / name
        yield path, re.sub(r'route=~"[^"]*"', lambda _: SELECTOR, path.read_text())
    page = ROOT / "app" / "page" / "live.js"
    listed = "".join(f'  "{route}",\n' for route in IMAGE_ROUTES)
    yield page, re.sub(r"(?<=IMAGE_ROUTES = new Set\(\[\n)[^\]]*", listed, page.read_text())
