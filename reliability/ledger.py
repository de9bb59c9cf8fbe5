"""Requests and answers of all clients, to compare with the counts of their server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from reliability.counted import Counted, Statuses
from reliability.finding import Finding, Scenario
from reliability.known import format_statuses
from reliability.wire import CLASSIFY, FEATURES, LENS, METRICS, Answer, Connection, Request

# Compared routes; a scrape would change its own count.
ROUTES = frozenset({CLASSIFY, FEATURES, LENS})

# nginx's status for a client that disconnected; only in the server's metrics.
_CLIENT_GONE = 499

_OK = 200
_BAD_IMAGE = frozenset({415, 422})
_WHOLE_REQUEST = {429: "refused", 500: "failed", 503: "refused", 504: "late"}


class Ledger:
    """Counts of sent requests, and of those answered, abandoned by the client, or broken off by the server."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.answered: Statuses = Counter()
        self.images: Counter[str] = Counter()
        self.abandoned_within: Statuses = Counter()
        self.abandoned_after: Counter[str] = Counter()
        self.images_abandoned = 0
        self.broken: Counter[str] = Counter()

    def record(self, request: Request, answer: Answer) -> None:
        """Record a complete answer."""
        self.answered[request.route, answer.status] += 1
        self.images.update(_outcomes(request, answer))

    async def call(self, connection: Connection, request: Request) -> Answer | None:
        """Send a request and record its end. Return the answer, or None if the server closed the connection."""
        self.sent[request.route] += 1
        try:
            answer = await connection.answer_to(request)
        except (OSError, EOFError) as error:
            self.broken[type(error).__name__] += 1
            await connection.close()
            return None
        self.record(request, answer)
        return answer

    def statuses(self) -> str:
        """Return the number of answers of each status as text."""
        by_status: Counter[int] = Counter()
        for (_, status), count in self.answered.items():
            by_status[status] += count
        return format_statuses(by_status)

    def disconnected_within_body(self, request: Request) -> None:
        """Record a request whose images the server never read, so it counts none."""
        self.abandoned_within[request.route, _CLIENT_GONE] += 1

    def disconnected_after_body(self, request: Request) -> None:
        """Record a request of which only the server knows whether its images were read and answered."""
        self.abandoned_after[request.route] += 1
        self.images_abandoned += request.images

    def requests(self) -> int:
        """Return the number of requests to the compared routes."""
        return sum(count for route, count in self.sent.items() if route in ROUTES)

    def findings(
        self, scenario: Scenario, server: Counted, documented: Mapping[str, frozenset[int]]
    ) -> Iterator[Finding]:
        """Compare clients' and server's counts, and answers with the documented statuses."""
        sent, answered, broken = self.sent.total(), self.answered.total(), self.broken.total()
        abandoned = self.abandoned_within.total() + self.abandoned_after.total()
        yield scenario.finding(
            "every request is answered or abandoned",
            f"{sent:,} sent = {answered:,} answered + {abandoned:,} abandoned + {broken:,} broken off",
            met=not broken and sent == answered + abandoned,
        )
        known = frozenset.union(*documented.values())
        undocumented = {
            (route, status): count
            for (route, status), count in self.answered.items()
            if status not in documented.get(route, known) and (route, status) != _SCRAPED
        }
        yield scenario.finding(
            "only documented statuses", f"{self.statuses()}; others: {undocumented or 'none'}", met=not undocumented
        )
        yield self._requests_agree(scenario, server)
        yield self._images_agree(scenario, server)

    def _requests_agree(self, scenario: Scenario, server: Counted) -> Finding:
        counted = Counter({key: count for key, count in server.requests.items() if key[0] in ROUTES})
        by_clients = (
            Counter({key: count for key, count in self.answered.items() if key[0] in ROUTES}) + self.abandoned_within
        )
        extra, missing = counted - by_clients, by_clients - counted
        by_route: Counter[str] = Counter()
        for (route, _), count in extra.items():
            by_route[route] += count
        return scenario.finding(
            "the server counts the requests that clients counted",
            f"{counted.total():,} counted, {by_clients.total():,} by clients, "
            f"{self.abandoned_after.total():,} abandoned after the body; not counted: {dict(missing) or 'none'}",
            # Only requests abandoned after the body may be in the server's counts alone.
            met=not missing and by_route == self.abandoned_after,
        )

    def _images_agree(self, scenario: Scenario, server: Counted) -> Finding:
        extra, missing = server.images - self.images, self.images - server.images
        return scenario.finding(
            "the server counts their images by outcome",
            f"{server.images.total():,} counted, {self.images.total():,} by clients, "
            f"{self.images_abandoned:,} abandoned ({extra['cancelled']:,} counted as cancelled); "
            f"not counted: {dict(missing) or 'none'}",
            met=not missing and extra.total() <= self.images_abandoned,
        )


_SCRAPED = (METRICS, _OK)


def _outcomes(request: Request, answer: Answer) -> Counter[str]:
    """Return the outcomes of a request's images, as the client sees them."""
    if not request.images:
        return Counter()
    if answer.status in _WHOLE_REQUEST:
        return Counter({_WHOLE_REQUEST[answer.status]: request.images})
    if answer.status in _BAD_IMAGE:
        return Counter({"bad_image": request.images})
    if answer.status != _OK:
        return Counter()
    return Counter("bad_image" if "error" in result else "ok" for result in json.loads(answer.body)["results"])
