"""A cached OpenVINO conversion is damaged between starts: each start serves the same answers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from models.images.samples import Sample, draw, encode
from reliability.clients import answered
from reliability.finding import Finding, Scenario
from reliability.scale import Scale
from reliability.serving import DEFAULT_MODEL, serving
from reliability.wire import CLASSIFY, Address, Connection, post

# Converts quickly; its cache entry is swapped with the default model's.
_OTHER_MODEL = "mobilenet_v3_small:random"
_WEIGHTS = "network.bin"
_SAMPLES: tuple[Sample, ...] = ("clock", "traffic-light", "crossword")


class _Start(NamedTuple):
    """Answers (five classes with probabilities for each sample) and log warnings of a start."""

    seconds: float
    answers: list[dict[str, float]]
    warnings: list[str]


class _Entries(NamedTuple):
    """Cache folders of the two models."""

    default: Path
    other: Path


def _truncate(entries: _Entries) -> None:
    weights = entries.default / _WEIGHTS
    os.truncate(weights, weights.stat().st_size // 2)


def _flip(entries: _Entries) -> None:
    weights = entries.default / _WEIGHTS
    content = bytearray(weights.read_bytes())
    # The highest bit of some exponents: finite numbers, and wrong ones.
    for at in range(3, len(content), len(content) // 64 // 4 * 4):
        content[at] ^= 0x40
    weights.write_bytes(content)


def _swap(entries: _Entries) -> None:
    aside = entries.default.with_name("aside")
    entries.default.rename(aside)
    entries.other.rename(entries.default)
    aside.rename(entries.other)


def _empty(entries: _Entries) -> None:
    os.truncate(entries.default / _WEIGHTS, 0)


_DAMAGES: Mapping[str, Callable[[_Entries], None]] = {
    "weights cut in half": _truncate,
    "bytes of the weights flipped": _flip,
    "swapped with another model's": _swap,
    "weights emptied": _empty,
}


def measure(scale: Scale) -> Iterator[Finding]:
    """Use one cache folder throughout. Yield nothing without OpenVINO."""
    if not importlib.util.find_spec("openvino"):
        return
    names = list(_DAMAGES)[: scale.count(len(_DAMAGES), least=2)]
    with tempfile.TemporaryDirectory(prefix="gradless-cache-") as cache:
        entries, first = _converted(Path(cache))
        for name in names:
            _DAMAGES[name](entries)
            yield _finding(name, first, _start(cache, DEFAULT_MODEL), lines=1)
        yield _finding("nothing, afterwards", first, _start(cache, DEFAULT_MODEL), lines=0)


def _converted(cache: Path) -> tuple[_Entries, _Start]:
    """Start with the default model, then with a second one too."""
    first = _start(str(cache), DEFAULT_MODEL)
    (default,) = cache.iterdir()
    _start(str(cache), f"{DEFAULT_MODEL},{_OTHER_MODEL}")
    (other,) = set(cache.iterdir()) - {default}
    return _Entries(default, other), first


def _finding(damage: str, first: _Start, found: _Start, *, lines: int) -> Finding:
    """Compare a start with the first one's answers, and with the number of log lines about the cache."""
    scenario = Scenario("damaged-cache", f"GRADLESS_CACHE_FOLDER, {DEFAULT_MODEL}: {damage}")
    same_classes = sum(map(_same_classes, first.answers, found.answers))
    difference = max(map(_difference, first.answers, found.answers))
    about_cache = [line for line in found.warnings if "converted again" in line]
    return scenario.finding(
        f"it serves with the same answers, and logs {'one line' if lines else 'nothing'} about it",
        f"{same_classes} of {len(_SAMPLES)} images have the same five classes, probabilities differ by "
        f"≤ {difference:.1g}; {len(about_cache)} of {len(found.warnings)} warnings are about it; "
        f"ready after {found.seconds:.1f} s",
        met=same_classes == len(_SAMPLES) and not difference and len(about_cache) == len(found.warnings) == lines,
    )


def _same_classes(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return list(one) == list(other)


def _difference(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return max(abs(probability - other.get(name, 0.0)) for name, probability in one.items())


def _start(cache: str, models: str) -> _Start:
    began = perf_counter()
    with serving(models, GRADLESS_BACKEND="openvino", GRADLESS_CACHE_FOLDER=cache) as served:
        seconds = perf_counter() - began
        answers = asyncio.run(_answers(served.address))
        return _Start(seconds, answers, served.warnings())


async def _answers(address: Address) -> list[dict[str, float]]:
    """Return the answers for one image after another. Raises RuntimeError if a status is not 200."""
    answers = []
    async with Connection(address) as connection:
        for sample in _SAMPLES:
            answer = await answered(connection, post(f"{CLASSIFY}?top_k=5", encode(draw(sample), "PNG")))
            (result,) = json.loads(answer.body)["results"]
            answers.append(_probabilities(result))
    return answers


def _probabilities(result: Mapping[str, Any]) -> dict[str, float]:
    return {each["label"]: each["probability"] for each in result["predictions"]}
