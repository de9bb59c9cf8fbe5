"""`GRADLESS_FIXED_BATCH`: an image's answer is bit-identical in any batch; the cost of that."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import uvloop

from models.images.samples import Sample, draw, encode
from reliability.clients import answered
from reliability.finding import Finding, Scenario
from reliability.flood import flood
from reliability.ledger import Ledger
from reliability.pictures import draw_pictures
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, Served, serving
from reliability.wire import CLASSIFY, FEATURES, Address, Connection, Request, of_files, post

# `eager` is slower and gets fewer, to take no longer.
_REQUESTS = {"openvino": 10_000, "eager": 2_500}
# Without the setting, to show that answers differ then.
_COMPARED_SHARE = 0.1
# Number of connections and their share of the requests: single images, small batches, more than one forward takes.
_CONNECTIONS = {1: 0.05, 8: 0.35, 32: 0.6}
_MAX_IMAGES = 5
_BAD_SHARE = 0.1

_FEW, _MANY = 1, 32
_ROUNDS = 3
_SECONDS = 5.0
_RATE_BAR = 0.9

# Answers in full precision.
_PATHS = (f"{FEATURES}?encoding=base64", f"{CLASSIFY}?top_k=5")
_FIXED = {"GRADLESS_FIXED_BATCH": "true"}


class _Images(NamedTuple):
    good: Sequence[bytes]
    bad: Sequence[bytes]


class _Mixed(NamedTuple):
    """One request of several images."""

    path: str
    images: Sequence[bytes]

    def request(self) -> Request:
        return of_files(self.path, self.images)


class _Compared(NamedTuple):
    """Clients' results, the numbers of good and bad images sent, and of answers that differ from the image alone."""

    ledger: Ledger
    good: int
    bad: int
    different: int


def measure(scale: Scale) -> Iterator[Finding]:
    """Compare answers with each installed backend on the default model; measure the cost with the default backend."""
    backends = [name for name in _REQUESTS if name != "openvino" or importlib.util.find_spec("openvino")]
    for backend in backends:
        yield from _bits(backend, scale.count(_REQUESTS[backend], least=200))
    yield _cost(max(1, scale.count(_ROUNDS)), max(3.0, _SECONDS * scale.share))


def _bits(backend: str, requests: int) -> Iterator[Finding]:
    scenario = Scenario(
        "same-answer",
        f"{backend}, fixed batch: {requests:,} requests of 1 to {_MAX_IMAGES} images, some bad, from "
        f"{', '.join(map(str, _CONNECTIONS))} connections",
    )
    images = _drawn()
    with serving(DEFAULT_MODEL, GRADLESS_BACKEND=backend, **_FIXED) as served:
        fixed = uvloop.run(_compared(served.address, images, requests))
    with serving(DEFAULT_MODEL, GRADLESS_BACKEND=backend) as served:
        free = uvloop.run(_compared(served.address, images, round(requests * _COMPARED_SHARE)))
    ledger = fixed.ledger
    yield scenario.finding(
        "each good image is answered, each bad one refused alone",
        f"{ledger.images['ok']:,} of {fixed.good:,} answered, {ledger.images['bad_image']:,} of {fixed.bad:,} refused; "
        f"{ledger.statuses()}, broken off: {ledger.broken.total()}",
        met=ledger.images == {"ok": fixed.good, "bad_image": fixed.bad},
    )
    yield scenario.finding(
        "features and classes are bit-identical to those of the image alone",
        f"{fixed.different:,} of {ledger.images['ok']:,} images differ; without fixed batch {free.different:,} of "
        f"{free.ledger.images['ok']:,}",
        met=not fixed.different,
    )


def _cost(rounds: int, seconds: float) -> Finding:
    """Measure two servers alternately."""
    scenario = Scenario("same-answer", f"one image a request; {rounds} rounds of {seconds:g} s each way")
    rates: dict[int, list[tuple[float, float]]] = {_FEW: [], _MANY: []}
    with serving(DEFAULT_MODEL, **_FIXED) as fixed, serving(DEFAULT_MODEL) as free:
        for _ in range(rounds):
            for connections, pairs in rates.items():
                pairs.append((_rate(fixed, connections, seconds), _rate(free, connections, seconds)))
    kept = {
        connections: median(with_it / without for with_it, without in pairs) for connections, pairs in rates.items()
    }
    texts = [
        f"{median(with_it for with_it, _ in pairs):.0f}/s of {median(without for _, without in pairs):.0f}/s from "
        f"{connections}: {kept[connections]:.2f}"
        for connections, pairs in rates.items()
    ]
    return scenario.finding(
        f"from {_MANY} connections a fixed batch keeps ≥ {_RATE_BAR:g} of the rate",
        "; ".join(texts),
        met=kept[_MANY] >= _RATE_BAR,
    )


def _rate(served: Served, connections: int, seconds: float) -> float:
    return float(flood(served, clients=connections, closed_s=seconds)["closed"]["per_second"])


def _drawn() -> _Images:
    pictures = draw_pictures()
    names: Sequence[Sample] = ("clock", "traffic-light", "crossword")
    good = [encode(draw(name), image_format) for name in names for image_format in ("JPEG", "PNG")]
    return _Images([*good, pictures.small], [pictures.truncated, b"this is no image", b"", pictures.vast])


async def _compared(address: Address, images: _Images, requests: int) -> _Compared:
    alone = await _alone(address, images.good)
    ledger = Ledger()
    good = bad = different = 0
    mixed = _requests(images, requests)

    async def call(most: int) -> None:
        nonlocal good, bad, different
        async with Connection(address) as connection:
            for sent in itertools.islice(mixed, most):
                bad_ones = sum(image in images.bad for image in sent.images)
                bad, good = bad + bad_ones, good + len(sent.images) - bad_ones
                answer = await ledger.call(connection, sent.request())
                if answer is not None and answer.status == 200:  # noqa: PLR2004 - of HTTP
                    results = zip(sent.images, json.loads(answer.body)["results"], strict=True)
                    different += sum(
                        "error" not in result and result != alone.get((sent.path, image)) for image, result in results
                    )

    for connections, share in _CONNECTIONS.items():
        await asyncio.gather(*(call(math.ceil(requests * share / connections)) for _ in range(connections)))
    return _Compared(ledger, good, bad, different)


async def _alone(address: Address, images: Sequence[bytes]) -> dict[tuple[str, bytes], Any]:
    """Return the answers of an idle server to each image. Raises RuntimeError if a status is not 200."""
    results = {}
    async with Connection(address) as connection:
        for path in _PATHS:
            for image in images:
                answer = await answered(connection, post(path, image))
                (results[path, image],) = json.loads(answer.body)["results"]
    return results


def _requests(images: _Images, count: int) -> Iterator[_Mixed]:
    """Yield `count` requests, the same in each run."""
    source = random.Random(0)  # noqa: S311 - a load, no secret
    for _ in range(count):
        each = range(source.randint(1, _MAX_IMAGES))
        kinds = [images.bad if source.random() < _BAD_SHARE else images.good for _ in each]
        yield _Mixed(source.choice(_PATHS), [source.choice(kind) for kind in kinds])
