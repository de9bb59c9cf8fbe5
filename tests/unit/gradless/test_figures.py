"""Bytes and seconds are formatted for people."""

from __future__ import annotations

import pytest

from gradless.sentences import in_bytes, in_seconds


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (7, "7 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (9_630_720, "9.63 MB"),
        (635_866_208, "636 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1 GB"),
        (2_730_000_000, "2.73 GB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(size: float, text: str) -> None:
    assert in_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (0.0000425, "42.5 µs"),
        (0.00425, "4.25 ms"),
        (0.512, "512 ms"),
        (0.9996, "1 s"),
        (2.86, "2.86 s"),
        (75.4, "75.4 s"),
    ],
)
def test_seconds_have_three_digits_and_a_fitting_unit(seconds: float, text: str) -> None:
    assert in_seconds(seconds) == text
