"""Images whose answer tells which of them was asked about: each is of one colour, which `null` gives back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from PIL import Image

from models.images.samples import encode
from reliability.wire import FEATURES, Answer, Connection, Place, Request, get, multipart, post

_SIZE = (160, 120)
# Odd, so that no two numbers have one colour; large, so that numbers in a row have very different ones.
_STEP = 0x5A5A5B
_MOST = 255
_OK = 200
_AFTERWARDS = 20


class Known:
    """What clients saw who asked about such images: requests by status, or by what broke them off, and how many got
    the answer to another."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.wrong = 0

    @property
    def all_answered(self) -> bool:
        """Whether each request got a 200."""
        return set(self.ends) == {str(_OK)}

    async def ask(self, connection: Connection, numbers: range) -> bool:
        """One request. Whether it got a 200."""
        end, answer = await exchange(connection, asking(numbers))
        self.ends[end] += 1
        if answer is None or answer.status != _OK:
            return False
        self.wrong += not _is_of(answer, numbers)
        return True

    def told(self) -> str:
        """As text."""
        return f"{told(self.ends)}; answers to another: {self.wrong}"


async def exchange(connection: Connection, request: Request) -> tuple[str, Answer | None]:
    """A status, or what broke it off, and the answer, if there was one."""
    try:
        answer = await connection.answer_to(request)
    except (OSError, EOFError) as error:
        await connection.leave()
        return type(error).__name__, None
    return str(answer.status), answer


async def well_afterwards(place: Place) -> tuple[bool, str]:
    """Whether the server is ready, and answers clients with connections of their own, which come to all its processes;
    what was seen, as text."""
    afterwards = Known()

    async def ask(number: int) -> None:
        async with Connection(place) as connection:
            await afterwards.ask(connection, range(number, number + 1))

    await asyncio.gather(*map(ask, range(_AFTERWARDS)))
    async with Connection(place) as connection:
        ready, _ = await exchange(connection, get("/readyz"))
    well = ready == str(_OK) and afterwards.all_answered and not afterwards.wrong
    return well, f"/readyz {ready}; {afterwards.told()}"


def asking(numbers: range) -> Request:
    """One request for the features of these images."""
    images = [known_image(number) for number in numbers]
    return post(FEATURES, images[0]) if len(images) == 1 else multipart(FEATURES, images)


def known_image(number: int) -> bytes:
    """A PNG, another for each number below 2**24."""
    return encode(Image.new("RGB", _SIZE, _colour(number)), "PNG")


def told(ends: Counter[str]) -> str:
    """As text, the most frequent first."""
    return ", ".join(f"{end}: {count:,}" for end, count in ends.most_common()) or "none"


def _is_of(answer: Answer, numbers: range) -> bool:
    found = [tuple(round(_MOST * each) for each in result["features"]) for result in json.loads(answer.body)["results"]]
    return found == [_colour(number) for number in numbers]


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = (number * _STEP % (1 << 24)).to_bytes(3, "big")
    return red, green, blue
