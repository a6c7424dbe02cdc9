"""A random permutation of range(n) in constant memory, however large n is.

A Feistel network is a bijection of the numbers of 2h bits whatever its round function is (Luby & Rackoff
1988). Numbers that it sends to n or beyond are sent on until they land below n (cycle walking, Black &
Rogaway 2002), which keeps it a bijection, now of the numbers below n.
"""

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
_MASK = (1 << 64) - 1


def feistel_shuffle(index: npt.NDArray[np.int64], n: int, key: int) -> npt.NDArray[np.int64]:
    """Return the values of a pseudorandom permutation of `range(n)`, in the shape of `index`.

    Args:
        index: any shape, values in [0, n).
        n: size of the permutation, at least 1.
        key: of the permutation, in [0, 2**64).
    """
    half = max((n - 1).bit_length() + 1, 2) // 2
    keys = [_mix_number(key + round_) for round_ in range(_ROUNDS)]
    result = _feistel(index.astype(np.uint64).reshape(-1), half, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _feistel(result[outside], half, keys)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64).reshape(index.shape)


def _feistel(x: npt.NDArray[np.uint64], half: int, keys: list[int]) -> npt.NDArray[np.uint64]:
    bits = np.uint64(half)
    low = np.uint64((1 << half) - 1)
    left, right = x >> bits, x & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & low)
    return (left << bits) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014); products are meant to wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_number(x: int) -> int:
    """SplitMix64 of one number."""
    x = (x + 1) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def mix_seed(*numbers: int) -> int:
    """Mix numbers, such as a seed and an epoch, into one key of 64 bits."""
    key = 0
    for number in numbers:
        key = _mix_number(key ^ (number & _MASK))
    return key
