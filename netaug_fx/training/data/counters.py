"""Random numbers by counter: what is drawn for an image follows from (seed, epoch, index) alone.

A generator with a state would make what an image gets depend on the images before it, and so on batches, worker
processes and ranks. Here each number is a hash of its own coordinates (SplitMix64: Steele, Lea, Flood, *Fast splittable
pseudorandom number generators*, OOPSLA 2014), computed for a whole batch at once, with the same integers on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 2**64


def key_of(*numbers: int) -> int:
    """One key of 63 bits for any integers; their order matters."""
    key = 0
    for number in numbers:
        key = (key ^ (number % _BITS)) + _GOLDEN
        key = ((key ^ (key % _BITS >> 30)) * _FIRST) % _BITS
        key = ((key ^ (key >> 27)) * _SECOND) % _BITS
        key ^= key >> 31
    return key >> 1


def uniform(key: int, indices: Tensor, count: int) -> Tensor:
    """``count`` numbers from [0, 1) for each of the int64 ``indices [n]``: float32 ``[n, count]``."""
    return _shifted(_bits(key, indices, count), 40).float() * 2.0**-24


def normal(key: int, indices: Tensor, count: int) -> Tensor:
    """``count`` numbers of mean 0 and variance 1 for each index, float32 ``[n, count]``.

    Each is the sum of four uniform bytes (Irwin-Hall), so none is beyond 3.5: enough for noise on pixels, and one hash
    makes two.
    """
    quarters = _bits(key, indices, (count + 1) // 2).view(torch.int8).view(len(indices), -1, 4)
    total = quarters[..., :count, :].sum(-1, dtype=torch.int32).float()
    return (total + 2) * (3**0.5 / 2**8)


def _bits(key: int, indices: Tensor, count: int) -> Tensor:
    """64 hashed bits for each index and place, int64 ``[n, count]``."""
    start = _mixed(indices.to(torch.int64) * _signed(_GOLDEN) + _signed(key))
    places = torch.arange(1, count + 1, device=indices.device) * _signed(_GOLDEN)
    return _mixed(start.unsqueeze(1) + places)


def _mixed(bits: Tensor) -> Tensor:
    first: Tensor = (bits ^ _shifted(bits, 30)) * _signed(_FIRST)
    second: Tensor = (first ^ _shifted(first, 27)) * _signed(_SECOND)
    return second ^ _shifted(second, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """A shift to the right that fills up with zeros; torch's own repeats the sign."""
    shifted: Tensor = (bits >> places) & (2 ** (64 - places) - 1)
    return shifted


def _signed(number: int) -> int:
    return number - _BITS if number >= _BITS // 2 else number
