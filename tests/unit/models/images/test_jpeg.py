"""The markers of a JPEG are found without holding the interpreter lock for long."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.images import jpeg
from models.images.jpeg import read_jpeg
from models.interface.errors import UndecodableImageError

_FRAME = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, 64, 64, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
_SCAN = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 0, 63, 0])
_BEGINS = b"\xff\xd8" + _FRAME + _SCAN


class _Recorded:
    """A pattern that records how many bytes each search may look at."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.spans: list[int] = []

    def search(self, text: bytes, start: int, end: int | None = None) -> re.Match[bytes] | None:
        stop = len(text) if end is None else min(end, len(text))
        self.spans.append(stop - start)
        return self._pattern.search(text, start, stop)


@pytest.mark.parametrize("pixels", [b"\xff\x00\x00\x00", b"\x00\x00"])
def test_no_search_looks_at_more_than_a_piece(monkeypatch: pytest.MonkeyPatch, pixels: bytes) -> None:
    """20 MB would stop all other threads for a tenth of a second."""
    recorded = _Recorded(jpeg._MARKER_AMONG_PIXELS)  # noqa: SLF001
    monkeypatch.setattr(jpeg, "_MARKER_AMONG_PIXELS", recorded)

    layout = read_jpeg(_BEGINS + pixels * 1_000_000 + _SCAN + b"\xff\xd9")

    assert len(layout.scans) == 2
    assert max(recorded.spans) <= 16 * 1024 + 1


@pytest.mark.parametrize("full", [b"\xff\xff", b"\xff\x00"])
def test_padding_has_a_limit_in_all(full: bytes) -> None:
    few, many = full * 300_000, full * 1_100_000

    assert len(read_jpeg(_BEGINS + few + _SCAN + b"\xff\xd9").scans) == 2
    for pixels in (many + _SCAN, (few + _SCAN) * 4):
        with pytest.raises(UndecodableImageError, match="too many bytes 0xFF between its markers"):
            read_jpeg(_BEGINS + pixels + b"\xff\xd9")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b"\xff", b"\xda", b"\xd9", b"\x00", b"\xc4", b"\x03", _SCAN]), max_size=60).map(b"".join),
    st.integers(1, 9),
)
def test_markers_between_pieces_are_found(pixels: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = read_jpeg(_BEGINS + pixels)
        patch.setattr(jpeg, "_PIECE_BYTES", piece)
        assert read_jpeg(_BEGINS + pixels) == found
