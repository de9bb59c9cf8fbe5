"""What the page reckons for itself, module by module, in the browser that will run it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

BEFORE = r"""
# HELP x Requests.
x_total{route="/a\"b\\c\nd",code="200"} 5
x_total{route="/other",code="200"} 7
t_bucket{le="0.1"} 10
t_bucket{le="0.2"} 20
t_bucket{le="+Inf"} 20
"""
AFTER = r"""
x_total{route="/a\"b\\c\nd",code="200"} 9
x_total{route="/other",code="200"} 2
t_bucket{le="0.1"} 20
t_bucket{le="0.2"} 50
t_bucket{le="+Inf"} 50
plain 1.5e+09
"""


@pytest.fixture(scope="module")
def reckon(browser: Browser, address: str) -> Iterator[Callable[..., Any]]:
    """The value of an expression over what a module exports, as `m`, and over `arguments`, as `a`."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        yield lambda module, expression, *arguments: page.evaluate(
            f"a => import('./page/{module}').then(m => ({expression}))", list(arguments)
        )


def test_an_exposition_is_read_with_its_escapes(reckon: Callable[..., Any]) -> None:
    assert reckon("exposition.js", "m.read(a[0]).get('x_total')[0]", BEFORE) == {
        "labels": {"route": '/a"b\\c\nd', "code": "200"},
        "value": 5,
    }
    assert reckon("exposition.js", "m.sum(m.read(a[0]), 'plain')", AFTER) == 1.5e9


def test_a_counter_grows_from_zero_after_a_server_restart(reckon: Callable[..., Any]) -> None:
    growth = "m.growth(m.read(a[0]), m.read(a[1]), 'x_total', ({ route }) => (route === '/other') === a[2])"
    assert reckon("exposition.js", growth, BEFORE, AFTER, False) == 4
    assert reckon("exposition.js", growth, BEFORE, AFTER, True) == 2


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.075), (0.5, 0.125), (1, 0.2)])
def test_a_quantile_is_linear_within_its_bucket(reckon: Callable[..., Any], share: float, expected: float) -> None:
    # 10 of the new ones are up to 0.1, and 20 from there to 0.2.
    grown = "m.quantile(a[2], m.bucketGrowth(m.read(a[0]), m.read(a[1]), 't'))"
    assert reckon("exposition.js", grown, BEFORE, AFTER, share) == pytest.approx(expected)


def test_without_observations_there_is_no_quantile(reckon: Callable[..., Any]) -> None:
    grown = "m.quantile(0.5, m.bucketGrowth(m.read(a[0]), m.read(a[0]), 't'))"
    assert reckon("exposition.js", grown, AFTER) is None


def test_figures_have_three_digits_and_the_unit_that_keeps_them_short(reckon: Callable[..., Any]) -> None:
    sizes = [0, 1, 999, 999_600, 635_900_000, 1_164_000_000]
    written = ["0 B", "1 B", "999 B", "1 MB", "636 MB", "1.16 GB"]
    assert reckon("format.js", "a.map(m.bytes)", *sizes) == [text.replace(" ", "\u00a0") for text in written]
    times = [0, 0.0000813, 0.0226, 0.9996, 12.34]
    written = ["0 ms", "81.3 µs", "22.6 ms", "1 s", "12.3 s"]
    assert reckon("format.js", "a.map(m.seconds)", *times) == [text.replace(" ", "\u00a0") for text in written]


def test_figures_stay_with_their_units_in_a_sentence(reckon: Callable[..., Any]) -> None:
    message = reckon("format.js", "m.glued(a[0])", "It kept 636 MB of 8 images in 12 ms for 50 % of 3 runs.")
    assert message == "It kept 636\u00a0MB of 8\u00a0images in 12\u00a0ms for 50\u00a0% of 3 runs."


def test_zero_vectors_are_similar_to_nothing(reckon: Callable[..., Any]) -> None:
    [zero, first, opposite] = reckon("vectors.js", "m.cosines(a)", [0, 0], [3, 4], [-3, -4])
    assert zero == [0, 0, 0]
    assert first == pytest.approx([0, 1, -1])
    assert opposite == pytest.approx([0, -1, 1])


def test_parts_of_a_request_stay_within_its_limits(reckon: Callable[..., Any]) -> None:
    sizes = "m.partsOf(a[0].map(size => ({ file: { size } })), a[1]).map(part => part.map(({ file }) => file.size))"
    limits = {"images": 3, "request_bytes": 10_000}
    assert reckon("sending.js", sizes, [1, 2, 3, 4, 5], limits) == [[1, 2, 3], [4, 5]]
    # Each file has a header of its own in the body.
    assert reckon("sending.js", sizes, [6000, 1999, 1, 50_000, 1], limits) == [[6000, 1999], [1], [50_000], [1]]


def test_a_cell_of_a_csv_file_is_quoted_and_never_a_formula(reckon: Callable[..., Any]) -> None:
    pictures = [{"name": name} for name in ("=1+1.png", 'a "b", c.png', "-x.png", "é.png")]
    results = [
        {"predictions": [{"label": "@cat", "index": 3, "probability": 0.75}]},
        {"predictions": [{"label": "dog, wild", "index": 4, "probability": 1e-7}]},
        {"error": {"title": "+Bad", "detail": "It is\nno image."}},
        {"predictions": []},
    ]
    written = reckon("downloads.js", "m.csvOf(a[0], a[1])", pictures, results)
    assert list(csv.reader(io.StringIO(written))) == [
        ["file", "error", "label_1", "index_1", "probability_1"],
        ["'=1+1.png", "", "'@cat", "3", "0.75"],
        ['a "b", c.png', "", "dog, wild", "4", "1e-7"],
        ["'-x.png", "'+Bad: It is\nno image.", "", "", ""],
        ["é.png", "", "", "", ""],
    ]
