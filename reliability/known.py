"""Images with known answers: each has one colour, which the `null` model returns."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from PIL import Image

from models.images.samples import encode
from reliability.wire import FEATURES, Address, Answer, Connection, Request, Sender, get, of_files

_SIZE = (160, 120)
# Odd, so that no two numbers have one colour; large, so that numbers in a row have very different ones.
_STEP = 0x5A5A5B
_MOST = 255
_OK = 200
_AFTERWARDS = 20


class KnownAnswers:
    """Requests for such images by status or connection error, and the number that got the answer to another request."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.wrong = 0

    @property
    def all_answered(self) -> bool:
        """Whether each request got 200."""
        return set(self.ends) == {str(_OK)}

    async def send(self, connection: Connection, numbers: range) -> bool:
        """Send one request. Return whether it got 200."""
        end, answer = await exchange(connection, request_for(numbers))
        self.ends[end] += 1
        if answer is None or answer.status != _OK:
            return False
        self.wrong += not _is_of(answer, numbers)
        return True

    def summary(self) -> str:
        """Return the counts as text."""
        return f"{format_counts(self.ends)}; answers to another request: {self.wrong}"


async def exchange(connection: Sender, request: Request) -> tuple[str, Answer | None]:
    """Return the status or the name of the connection error, and the answer if there was one."""
    try:
        answer = await connection.answer_to(request)
    except (OSError, EOFError) as error:
        await connection.close()
        return type(error).__name__, None
    return str(answer.status), answer


async def well_afterwards(address: Address) -> tuple[bool, str]:
    """Return whether the server is ready and answers on new connections to all its processes, and a summary."""
    afterwards = KnownAnswers()

    async def send(number: int) -> None:
        async with Connection(address) as connection:
            await afterwards.send(connection, range(number, number + 1))

    await asyncio.gather(*map(send, range(_AFTERWARDS)))
    async with Connection(address) as connection:
        ready, _ = await exchange(connection, get("/readyz"))
    well = ready == str(_OK) and afterwards.all_answered and not afterwards.wrong
    return well, f"/readyz {ready}; {afterwards.summary()}"


def request_for(numbers: range) -> Request:
    """Return one request for the features of these images."""
    return of_files(FEATURES, [known_image(number) for number in numbers])


def known_image(number: int) -> bytes:
    """Return a PNG that is unique for each number below 2**24."""
    return encode(Image.new("RGB", _SIZE, _colour(number)), "PNG")


def format_counts(ends: Counter[str]) -> str:
    """Return the counts as text, the most frequent first."""
    return ", ".join(f"{end}: {count:,}" for end, count in ends.most_common()) or "none"


def format_statuses(statuses: Counter[int]) -> str:
    """Return the counts as text, in order of the statuses."""
    return ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items())) or "none"


def _is_of(answer: Answer, numbers: range) -> bool:
    found = [tuple(round(_MOST * each) for each in result["features"]) for result in json.loads(answer.body)["results"]]
    return found == [_colour(number) for number in numbers]


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = (number * _STEP % (1 << 24)).to_bytes(3, "big")
    return red, green, blue
