"""What callers sent and saw, to be held against what their server counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from reliability.counted import Counted, Statuses
from reliability.finding import Finding, Scenario
from reliability.wire import CLASSIFY, FEATURES, LENS, METRICS, Answer, Request

# Those that change nothing by being looked at.
ROUTES = frozenset({CLASSIFY, FEATURES, LENS})

# nginx's number for a caller who did not wait, in the server's metrics alone.
_CLIENT_GONE = 499

_OK = 200
_BAD_IMAGE = frozenset({415, 422})
_WHOLE_REQUEST = {429: "refused", 500: "failed", 503: "refused", 504: "late"}


class Ledger:
    """Of all callers of one server. Each request is sent, and then answered, left or broken off by the server."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.answered: Statuses = Counter()
        self.images: Counter[str] = Counter()
        self.left_within: Statuses = Counter()
        self.left_after: Counter[str] = Counter()
        self.images_left = 0
        self.broken: Counter[str] = Counter()

    def saw(self, request: Request, answer: Answer) -> None:
        """One whole answer."""
        self.answered[request.route, answer.status] += 1
        self.images.update(_outcomes(request, answer))

    def left_within_body(self, request: Request) -> None:
        """Its images are counted nowhere: nobody has read them."""
        self.left_within[request.route, _CLIENT_GONE] += 1

    def left_after_body(self, request: Request) -> None:
        """Whether its images have been read, and whether an answer was ready first, only the server knows."""
        self.left_after[request.route] += 1
        self.images_left += request.images

    def requests(self) -> int:
        """Those of the compared routes."""
        return sum(count for route, count in self.sent.items() if route in ROUTES)

    def findings(
        self, scenario: Scenario, server: Counted, documented: Mapping[str, frozenset[int]]
    ) -> Iterator[Finding]:
        """Is each request accounted for, here and there, and was each answer one that is documented?"""
        sent, answered, broken = self.sent.total(), self.answered.total(), self.broken.total()
        left = self.left_within.total() + self.left_after.total()
        yield scenario.finding(
            "every request is answered or left",
            f"{sent:,} sent = {answered:,} answered + {left:,} left + {broken:,} broken off",
            met=not broken and sent == answered + left,
        )
        known = frozenset.union(*documented.values())
        strange = {
            (route, status): count
            for (route, status), count in self.answered.items()
            if status not in documented.get(route, known) and (route, status) != _SCRAPED
        }
        by_status: Counter[int] = Counter()
        for (_, status), count in self.answered.items():
            by_status[status] += count
        statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(by_status.items()))
        yield scenario.finding("documented statuses alone", f"{statuses}; others: {strange or 'none'}", met=not strange)
        yield self._requests_agree(scenario, server)
        yield self._images_agree(scenario, server)

    def _requests_agree(self, scenario: Scenario, server: Counted) -> Finding:
        counted = Counter({key: count for key, count in server.requests.items() if key[0] in ROUTES})
        seen = Counter({key: count for key, count in self.answered.items() if key[0] in ROUTES}) + self.left_within
        extra, missing = counted - seen, seen - counted
        by_route: Counter[str] = Counter()
        for (route, _), count in extra.items():
            by_route[route] += count
        return scenario.finding(
            "the server counts the requests that callers saw",
            f"{counted.total():,} counted, {seen.total():,} seen, {self.left_after.total():,} left after their body; "
            f"not counted: {dict(missing) or 'none'}",
            # Whoever leaves after the body has sees no status: those alone may be in the server's counts only.
            met=not missing and by_route == self.left_after,
        )

    def _images_agree(self, scenario: Scenario, server: Counted) -> Finding:
        extra, missing = server.images - self.images, self.images - server.images
        return scenario.finding(
            "and their images by outcome",
            f"{server.images.total():,} counted, {self.images.total():,} seen, {self.images_left:,} of those who left "
            f"({extra['cancelled']:,} counted as cancelled); not counted: {dict(missing) or 'none'}",
            met=not missing and extra.total() <= self.images_left,
        )


_SCRAPED = (METRICS, _OK)


def _outcomes(request: Request, answer: Answer) -> Counter[str]:
    """What became of a request's images, as its caller sees it."""
    if not request.images:
        return Counter()
    if answer.status in _WHOLE_REQUEST:
        return Counter({_WHOLE_REQUEST[answer.status]: request.images})
    if answer.status in _BAD_IMAGE:
        return Counter({"bad_image": request.images})
    if answer.status != _OK:
        return Counter()
    return Counter("bad_image" if "error" in result else "ok" for result in json.loads(answer.body)["results"])
