"""One exposition for all scrapers of a moment: building it takes time on the core that answers requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.observability.metrics.exposition import content_type_for
from models.interface.shared_work import SharedWork

# Of everything that a scraper may ask for, there are two formats.
_ACCEPT = {True: "application/openmetrics-text; version=1.0.0", False: "text/plain"}


class SharedExposition:
    """Has `build` make an exposition, in a thread, at most once in `max_age_s` seconds for each format."""

    def __init__(self, build: Callable[[str], tuple[bytes, str]], max_age_s: float) -> None:
        self.build = build
        self.max_age_s = max_age_s
        self._shared: SharedWork[bool, bytes] = SharedWork()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as (body, content type): OpenMetrics where `accept` asks for it, else Prometheus text."""
        content_type = content_type_for(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")

        async def build() -> bytes:
            body, _ = await asyncio.to_thread(self.build, _ACCEPT[openmetrics])
            return body

        return await self._shared.result(openmetrics, build, max_age_s=self.max_age_s), content_type
