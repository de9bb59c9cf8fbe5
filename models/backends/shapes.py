"""Batches of one shape: kernels are chosen by shape, and what another kernel adds in another order differs in its last
bits."""

from __future__ import annotations

import torch


def padded(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """(N, 3, H, W) with blank images at its end, so that there are `count`; channels last in memory."""
    if len(pixels) == count:
        return pixels
    whole = torch.empty((count, *pixels.shape[1:]), dtype=pixels.dtype, memory_format=torch.channels_last)
    whole[: len(pixels)] = pixels
    whole[len(pixels) :] = 0
    return whole


def next_multiple(count: int, of: int) -> int:
    """The least multiple of `of` that is not below `count`."""
    return -(-count // of) * of


def buckets(max_batch_size: int) -> tuple[int, ...]:
    """1, 2, 4 … and `max_batch_size` itself."""
    powers = [2**power for power in range(max_batch_size.bit_length()) if 2**power < max_batch_size]
    return (*powers, max_batch_size)
