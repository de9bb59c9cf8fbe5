"""Bursts of sixteen images with a corrupt one among them, which must fail alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import NamedTuple

from reliability.finding import Finding, Scenario
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, Answer, Connection, Place, Request, post

_BURSTS = 50
_IMAGES = 16
_BAD_IMAGE = frozenset({415, 422})


class _Failed(NamedTuple):
    neighbours: int
    corrupt_accepted: int


def measure(scale: Scale) -> Iterator[Finding]:
    """On one server of the default model, whose forward the sixteen share."""
    bursts = scale.count(_BURSTS, least=10)
    scenario = Scenario("neighbours", f"{bursts} bursts of {_IMAGES} images at once, one of them corrupt")
    with serving(DEFAULT_MODEL) as served:
        failed = asyncio.run(_bursts(served, bursts))
    yield scenario.finding(
        "no neighbour fails, nor is answered wrongly",
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
        place = number % _IMAGES
        requests[place] = post(f"{CLASSIFY}?top_k=1", corrupt[number % len(corrupt)])
        answers = await asyncio.gather(*(_answer(served.place, request) for request in requests))
        bad = answers.pop(place)
        accepted += bad is None or bad.status not in _BAD_IMAGE
        neighbours += sum(not _right(answer) for answer in answers)
    return _Failed(neighbours, accepted)


async def _answer(place: Place, request: Request) -> Answer | None:
    """None where the server broke it off."""
    try:
        async with Connection(place) as connection:
            return await connection.answer_to(request)
    except (OSError, EOFError):
        return None


def _right(answer: Answer | None) -> bool:
    if answer is None or answer.status != 200:  # noqa: PLR2004 - of HTTP
        return False
    label: str = json.loads(answer.body)["results"][0]["predictions"][0]["label"]
    return label == "analog clock"
