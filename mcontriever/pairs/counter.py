"""Random numbers addressed by counters instead of drawn from a state: number j of stream k is a function of (k, j).

NumPy's Philox would be keyed the same way but takes longer to set up for one sample than a whole pair may cost, so
the streams are SplitMix64's: an odd constant times the counter, then a mixing function, over whole arrays at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def words(streams: NDArray[np.uint64] | np.uint64 | int, counters: NDArray[np.integer] | int) -> Words:
    """64 random bits for each (stream, counter); the two are broadcast against each other."""
    state = np.atleast_1d(np.asarray(counters)).astype(np.uint64)  # a copy, worked on in place
    state = state + np.uint64(1)
    state *= _STEP
    state = state + np.asarray(streams, dtype=np.uint64)
    return mix(state)


def words_along(streams: Words, lengths: NDArray[np.int64]) -> Words:
    """Numbers 0 … length-1 of each stream, end to end: (V,) streams and lengths to (T,) words."""
    starts = (np.cumsum(lengths) - lengths).astype(np.uint64)
    state = np.repeat(streams - starts * _STEP, lengths)  # so that one count over all the words serves every stream
    state += np.arange(1, len(state) + 1, dtype=np.uint64) * _STEP
    return mix(state)


def mix(state: Words) -> Words:
    """Scramble each word in place, so that every input bit reaches every output bit."""
    scratch = state >> np.uint64(30)
    state ^= scratch
    state *= _FIRST
    np.right_shift(state, np.uint64(27), out=scratch)
    state ^= scratch
    state *= _SECOND
    np.right_shift(state, np.uint64(31), out=scratch)
    state ^= scratch
    return state


def streams(seed: int, *path: NDArray[np.integer] | int) -> Words:
    """A stream for every place `path` leads to from a seed: (sample,), (language, epoch), … arrays broadcast."""
    stream = words(seed & (2**64 - 1), 0)
    for part in path:
        stream = words(stream, part)
    return stream


def uniform(bits: Words) -> NDArray[np.float64]:
    """Random words as numbers in [0, 1)."""
    numbers: NDArray[np.float64] = np.multiply(bits >> np.uint64(11), 2.0**-53)
    return numbers


def below(bits: Words, bound: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Random words as whole numbers in [0, bound), for bounds up to 2**32."""
    return ((bits >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)
