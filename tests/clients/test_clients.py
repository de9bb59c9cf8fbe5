"""Clients of other servers work unchanged, as docs/clients.md shows; their answers are those of the native routes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

_HERE = Path(__file__).parent
_PAGE = (_HERE.parents[1] / "docs/clients.md").read_text()
CLIENTS = sorted(path.stem for path in _HERE.glob("*.txt"))

# (client, Python): a comment above an example names its environment.
EXAMPLES = re.findall(r"<!-- ([a-z_]+) -->\n```python\n(.*?)```", _PAGE, re.DOTALL)


@pytest.mark.parametrize("client", CLIENTS)
def test_an_unchanged_client_gets_the_native_answers(run: Callable[..., str], client: str) -> None:
    cases = str(_HERE / f"{client}_cases.py")
    run(client, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-c", "/dev/null", cases)


@pytest.mark.parametrize(
    ("client", "example"), EXAMPLES, ids=[f"{client}-{n}" for n, (client, _) in enumerate(EXAMPLES)]
)
def test_an_example_of_the_page_prints_what_its_comments_say(
    run: Callable[..., str], address: str, client: str, example: str
) -> None:
    served = example.replace("localhost:8000", urlsplit(address).netloc)

    printed = run(client, "-c", served)

    for expected in re.findall(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE):
        assert expected in printed


@pytest.mark.parametrize("client", CLIENTS)
def test_the_page_has_an_example_of_each_client(client: str) -> None:
    assert client in {named for named, _ in EXAMPLES}
