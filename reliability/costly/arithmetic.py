"""An arithmetic coder as of ITU-T T.81, annex D, to adapt a decoder with a few blocks.

After the last coded decision a decoder reads zeros, and zeros decode as the more probable symbol of each context. What
the coded blocks made probable therefore goes on to the end of the picture, without a byte.
"""

from __future__ import annotations

from typing import NamedTuple

# The largest magnitude a coefficient can have: so many doublings of 2.
_DOUBLINGS = 13
_BLOCKS = 4
_COEFFICIENTS = range(1, 64)
# Up to this coefficient, and above it, magnitudes have other contexts (T.81, table F.2 and K_x).
_LOW_FREQUENCIES = 5
_LOW_CONTEXT, _HIGH_CONTEXT = 189, 217
_MAGNITUDE_BITS = 14

_HALF = 0x8000


class _State(NamedTuple):
    """A row of T.81, table D.3: how likely the less probable symbol is, and what follows."""

    less_probable: int
    after_less_probable: int
    after_more_probable: int
    switches: bool


# What decisions that are all alike come through. A sign has a fixed probability.
_STATES = (
    _State(0x5A1D, 1, 1, switches=True),
    _State(0x2586, 14, 2, switches=False),
    _State(0x1114, 16, 3, switches=False),
    _State(0x080B, 18, 4, switches=False),
    _State(0x03D8, 20, 5, switches=False),
    _State(0x01DA, 23, 6, switches=False),
    _State(0x00E5, 25, 7, switches=False),
    _State(0x006F, 28, 8, switches=False),
    _State(0x0036, 30, 9, switches=False),
    _State(0x001A, 33, 10, switches=False),
    _State(0x000D, 35, 11, switches=False),
    _State(0x0006, 9, 12, switches=False),
    _State(0x0003, 10, 13, switches=False),
    _State(0x0001, 12, 13, switches=False),
)
_SIGN = -1
_FIXED = _State(0x5A1D, 0, 0, switches=False)


class _Coder:
    def __init__(self) -> None:
        self._base = 0
        self._range = 2 * _HALF
        self._shifted = 0
        self._states: dict[int, tuple[int, int]] = {}

    def code(self, context: int, symbol: int) -> None:
        number, more_probable = self._states.get(context, (0, 0))
        state = _FIXED if context == _SIGN else _STATES[number]
        rest = self._range - state.less_probable
        is_more_probable = symbol == more_probable
        # The larger part is the more probable symbol's, which may be the upper one (T.81, D.1.5).
        if is_more_probable == (rest < state.less_probable):
            self._base += rest
            self._range = state.less_probable
        else:
            self._range = rest
            if rest >= _HALF:
                return
        if context != _SIGN:
            following = state.after_more_probable if is_more_probable else state.after_less_probable
            switched = state.switches and not is_more_probable
            self._states[context] = (following, more_probable ^ switched)
        while self._range < _HALF:
            self._range <<= 1
            self._base <<= 1
            self._shifted += 1

    def coded(self) -> bytes:
        bits = 16 + self._shifted
        padding = -bits % 8
        data = (self._base << padding).to_bytes((bits + padding) // 8)
        return data.rstrip(b"\0").replace(b"\xff", b"\xff\0")


def full_blocks(*, with_dc: bool) -> bytes:
    """Return the data of blocks whose AC coefficients are all of the largest magnitude; with `with_dc` of a sequential
    scan, else of a progressive one."""
    coder = _Coder()
    for _ in range(_BLOCKS):
        if with_dc:
            # DC contexts come after those of AC: no difference.
            coder.code(1000, 0)
        for coefficient in _COEFFICIENTS:
            _code_coefficient(coder, coefficient)
    return coder.coded()


def _code_coefficient(coder: _Coder, coefficient: int) -> None:
    """T.81, figures F.20 to F.24."""
    context = 3 * (coefficient - 1)
    coder.code(context, 0)  # not the end of the block
    coder.code(context + 1, 1)  # not zero
    coder.code(_SIGN, 0)
    coder.code(context + 2, 1)
    coder.code(context + 2, 1)
    magnitude = _LOW_CONTEXT if coefficient <= _LOW_FREQUENCIES else _HIGH_CONTEXT
    for doubling in range(_DOUBLINGS):
        coder.code(magnitude + doubling, 1)
    coder.code(magnitude + _DOUBLINGS, 0)
    for _ in range(_DOUBLINGS + 1):
        coder.code(magnitude + _DOUBLINGS + _MAGNITUDE_BITS, 0)
