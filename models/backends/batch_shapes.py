"""Sizes and shapes of batches that backends have in common: default maximum, padding, and buckets."""

from __future__ import annotations

import torch

from models.hardware import cores

MAX_BATCH_SIZE = 32
# Activations of more images do not fit into the caches of a core.
IMAGES_PER_CORE = 4


def default_max_batch_size(device: torch.device) -> int:
    """Return 32, or on a CPU as many images as keep its cores busy.

    Larger batches are not faster on a CPU, and a new request waits for the whole forward.
    """
    if device.type != "cpu":
        return MAX_BATCH_SIZE
    return min(MAX_BATCH_SIZE, IMAGES_PER_CORE * cores.available_cores())


def padded(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """Return (N, 3, H, W) pixels with blank images appended up to `count`, channels last in memory."""
    if len(pixels) == count:
        return pixels
    whole = torch.empty((count, *pixels.shape[1:]), dtype=pixels.dtype, memory_format=torch.channels_last)
    whole[: len(pixels)] = pixels
    whole[len(pixels) :] = 0
    return whole


def next_multiple(count: int, of: int) -> int:
    """Return the least multiple of `of` that is not below `count`."""
    return -(-count // of) * of


def buckets(max_batch_size: int) -> tuple[int, ...]:
    """Return 1, 2, 4 … and `max_batch_size` itself: the sizes that a backend compiles or records."""
    powers = [2**power for power in range(max_batch_size.bit_length()) if 2**power < max_batch_size]
    return (*powers, max_batch_size)
