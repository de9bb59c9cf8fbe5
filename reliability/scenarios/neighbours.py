"""Bursts of sixteen images, one of them corrupt, which must fail alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import NamedTuple

from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Address, Answer, Connection, Request, post

_BURSTS = 50
_IMAGES = 16
_BAD_IMAGE = frozenset({415, 422})


class _Failed(NamedTuple):
    neighbours: int
    corrupt_accepted: int


def measure(scale: Scale) -> Iterator[Finding]:
    """Run on one server of the default model; the sixteen share a forward."""
    bursts = scale.count(_BURSTS, least=10)
    scenario = Scenario("neighbours", f"{bursts} bursts of {_IMAGES} images at once, one of them corrupt")
    with serving(DEFAULT_MODEL) as served:
        failed = asyncio.run(_bursts(served, bursts))
    yield scenario.finding(
        "no other image fails or gets a wrong answer",
        f"{failed.neighbours} of {bursts * (_IMAGES - 1):,} failed",
        met=not failed.neighbours,
    )
    yield scenario.finding(
        "the corrupt one is refused with 415 or 422",
        f"{bursts - failed.corrupt_accepted} of {bursts}",
        met=not failed.corrupt_accepted,
    )


async def _bursts(served: Served, bursts: int) -> _Failed:
    pictures = draw_pictures()
    good = post(f"{CLASSIFY}?top_k=1", pictures.clock)
    corrupt = [pictures.truncated, pictures.clock[:200], b"this is no image", bytes(2000), b"", pictures.vast]
    neighbours = accepted = 0
    for number in range(bursts):
        requests = [good] * _IMAGES
        position = number % _IMAGES
        requests[position] = post(f"{CLASSIFY}?top_k=1", corrupt[number % len(corrupt)])
        answers = await asyncio.gather(*(_answer(served.address, request) for request in requests))
        bad = answers.pop(position)
        accepted += bad is None or bad.status not in _BAD_IMAGE
        neighbours += sum(not _right(answer) for answer in answers)
    return _Failed(neighbours, accepted)


async def _answer(address: Address, request: Request) -> Answer | None:
    """Return the answer, or None if the server closed the connection."""
    try:
        async with Connection(address) as connection:
            return await connection.answer_to(request)
    except (OSError, EOFError):
        return None


def _right(answer: Answer | None) -> bool:
    if answer is None or answer.status != 200:  # noqa: PLR2004 - of HTTP
        return False
    label: str = json.loads(answer.body)["results"][0]["predictions"][0]["label"]
    return label == "analog clock"
