"""JPEG files assembled from markers, whose decode costs far more than their bytes or pixels suggest.

Section numbers are those of ITU-T T.81. Most scans below carry no data: a decoder continues with zeros after the end
of a scan's data, and zeros decode as empty blocks, or, after an arithmetic coder has been adapted to it, as full ones.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from reliability.costly.arithmetic import full_blocks

# Horizontal and vertical sampling factors of each component.
Sampling = Sequence[tuple[int, int]]
GREY: Sampling = ((1, 1),)
YCC_444: Sampling = ((1, 1), (1, 1), (1, 1))
YCC_420: Sampling = ((2, 2), (1, 1), (1, 1))
CMYK: Sampling = ((1, 1),) * 4

_START, _END = b"\xff\xd8", b"\xff\xd9"
_SOF_BASELINE, _SOF_PROGRESSIVE, _SOF_LOSSLESS = 0xC0, 0xC2, 0xC3
_SOF_ARITHMETIC, _SOF_ARITHMETIC_PROGRESSIVE = 0xC9, 0xCA
_DHT, _SOS, _DQT, _DRI = 0xC4, 0xDA, 0xDB, 0xDD
_DC, _AC = 0, 1
_BLOCK = 8
_LAST = 63
# An end-of-band run counts up to 32,767 blocks: the symbol n << 4 and n bits stand for 2**n and what the bits add.
_LARGEST_RUN_BITS = 14
_LARGEST_RUN = 2 ** (_LARGEST_RUN_BITS + 1) - 1


def baseline(width: int, height: int, sampling: Sampling, *, restart_interval: int = 0) -> bytes:
    """Return a sequential JPEG without data: the whole picture is missing, and decoders fill it with grey."""
    restart = _segment(_DRI, struct.pack(">H", restart_interval)) if restart_interval else b""
    return _file(_SOF_BASELINE, width, height, sampling, _EMPTY_TABLES + restart + _scan(range(len(sampling))))


def whole_baseline(width: int, height: int, sampling: Sampling) -> bytes:
    """Return a valid sequential JPEG of one colour: two bits for each block, and each is zero."""
    blocks = sum(_blocks(width, height, sampling, component) for component in range(len(sampling)))
    data = _scan(range(len(sampling))) + bytes(2 * blocks // 8 + 1)
    return _file(_SOF_BASELINE, width, height, sampling, _EMPTY_TABLES + data)


def progressive(width: int, height: int, sampling: Sampling, scans: int) -> bytes:
    """Return a progressive JPEG whose scans refine coefficients that are all zero, over and over."""
    runs = [_run_of_empty(_blocks(width, height, sampling, component)) for component in range(len(sampling))]
    body = [_RUN_TABLES, _scan(range(len(sampling)), last=0, low=1)]
    for number in range(scans - 1):
        component = number % len(sampling)
        high = 0 if number < len(sampling) else 2
        body += [_scan([component], first=1, high=high, low=1), runs[component]]
    return _file(_SOF_PROGRESSIVE, width, height, sampling, b"".join(body))


def valid_progressive(width: int, height: int, sampling: Sampling) -> bytes:
    """Return a progressive JPEG with as many scans as T.81 allows where each covers the whole spectrum: 14 for each
    component, one more for DC. Decoders have nothing to warn of."""
    components = range(len(sampling))
    blocks = [_blocks(width, height, sampling, component) for component in components]
    body = [_RUN_TABLES, _scan(components, last=0), bytes(sum(blocks) // 8 + 1)]
    for low in range(13, -1, -1):
        high = 0 if low == 13 else low + 1  # noqa: PLR2004 - the first of the loop
        for component in components:
            body += [_scan([component], first=1, high=high, low=low), _run_of_empty(blocks[component])]
    return _file(_SOF_PROGRESSIVE, width, height, sampling, b"".join(body))


def arithmetic(width: int, height: int, sampling: Sampling) -> bytes:
    """Return a sequential arithmetic-coded JPEG of which every coefficient takes 33 decisions."""
    data = _scan(range(len(sampling))) + full_blocks(with_dc=True)
    return _file(_SOF_ARITHMETIC, width, height, sampling, data)


def arithmetic_progressive(width: int, height: int, sampling: Sampling, scans: int) -> bytes:
    """Return the same as a progressive JPEG, which does all of it once for each scan."""
    data = full_blocks(with_dc=False)
    body = [_scan(range(len(sampling)), last=0)]
    for number in range(scans - 1):
        body += [_scan([number % len(sampling)], first=1), data]
    return _file(_SOF_ARITHMETIC_PROGRESSIVE, width, height, sampling, b"".join(body))


def lossless(width: int, height: int, sampling: Sampling) -> bytes:
    """Return a lossless JPEG without data. Decoders cannot reduce it."""
    # Ss is the predictor there, Se and Al are zero.
    data = _table(_DC, {1: [0]}) + _scan(range(len(sampling)), first=1, last=0)
    return _file(_SOF_LOSSLESS, width, height, sampling, data)


def _file(frame: int, width: int, height: int, sampling: Sampling, scans: bytes) -> bytes:
    components = b"".join(
        bytes([number, across << 4 | down, 0]) for number, (across, down) in enumerate(sampling, start=1)
    )
    header = struct.pack(">BHHB", 8, height, width, len(sampling)) + components
    quantization = _segment(_DQT, bytes([0]) + bytes([1] * 64))
    return _START + quantization + _segment(frame, header) + scans + _END


def _scan(components: Sequence[int], *, first: int = 0, last: int = _LAST, high: int = 0, low: int = 0) -> bytes:
    tables = b"".join(bytes([component + 1, 0]) for component in components)
    return _segment(_SOS, bytes([len(components)]) + tables + bytes([first, last, high << 4 | low]))


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _table(kind: int, symbols: Mapping[int, Sequence[int]]) -> bytes:
    """A Huffman table, from the symbols of each code length."""
    lengths = range(1, 17)
    counts = bytes(len(symbols.get(length, ())) for length in lengths)
    return _segment(_DHT, bytes([kind << 4]) + counts + bytes(s for length in lengths for s in symbols.get(length, ())))


# A zero bit is no difference in DC, and the end of a block in AC.
_EMPTY_TABLES = _table(_DC, {1: [0]}) + _table(_AC, {1: [0]})
# The longest run has the code 0, each other one a 1 and four bits.
_RUN_TABLES = _table(_DC, {1: [0]}) + _table(
    _AC, {1: [_LARGEST_RUN_BITS << 4], 5: [bits << 4 for bits in range(_LARGEST_RUN_BITS)]}
)


def _blocks(width: int, height: int, sampling: Sampling, component: int) -> int:
    """Blocks of a component in a scan of its own."""
    across, down = sampling[component]
    most_across = max(horizontal for horizontal, _ in sampling)
    most_down = max(vertical for _, vertical in sampling)
    columns = -(-width * across // (most_across * _BLOCK))
    return columns * -(-height * down // (most_down * _BLOCK))


def _run_of_empty(blocks: int) -> bytes:
    bits = []
    while blocks:
        run = min(blocks, _LARGEST_RUN)
        size = run.bit_length() - 1
        bits.append("0" if size == _LARGEST_RUN_BITS else f"1{size:04b}")
        bits.append(f"{run - 2**size:0{size}b}" if size else "")
        blocks -= run
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return int(joined, 2).to_bytes(len(joined) // 8).replace(b"\xff", b"\xff\0")
