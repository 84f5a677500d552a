"""Spans that come twice in a window, for pairs of passages which share one (Spider, arXiv 2112.07708).

Letters: B windows, T tokens of all of them together, end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .counter import Words, mix, uniform, words_along

Integers = NDArray[np.int64]

SPAN_TOKENS = 12  # of the longest span
_SHORTEST = 3  # one or two words at least
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Recurring:
    """Where each window's span comes first and again, and its length, 0 for windows in which nothing recurs."""

    first: Integers  # (B,) from the window's start
    second: Integers  # (B,)
    length: Integers  # (B,)


def find(tokens: NDArray[Any], sizes: Integers, rarity: NDArray[np.float32], streams: Words) -> Recurring:
    """Choose one recurring span of each window, the rarer its tokens the more likely; (T,) rarity, (B,) streams."""
    windows = np.repeat(np.arange(len(sizes)), sizes)
    begins = np.cumsum(sizes) - sizes
    keys = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    weights = np.zeros(len(tokens))
    for place in range(_SHORTEST):  # one number for the tokens from each place on; past the end it matters no more
        keys = mix(keys * _ODD + np.roll(tokens, -place).astype(np.uint64))
        weights += np.roll(rarity, -place)
    inside = np.arange(len(tokens)) + _SHORTEST <= np.repeat(begins + sizes, sizes)
    there = np.flatnonzero(inside)
    order = there[np.argsort(keys[there], kind="stable")]
    equal = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]) & (order[1:] - order[:-1] >= _SHORTEST))
    first, second = order[equal], order[equal + 1]
    # of all candidates of a window the least -log(chance) / weight: each wins in proportion to its weight
    chances = uniform(words_along(streams, sizes))[first]
    race = -np.log1p(-chances) / np.maximum(weights[first], 1e-6)
    ranked = np.lexsort((race, windows[first]))
    found, best = np.unique(windows[first[ranked]], return_index=True)
    chosen = ranked[best]
    first, second = first[chosen], second[chosen]
    length = _extended(tokens, first, second, (begins + sizes)[found])
    result = Recurring(*(np.zeros_like(sizes) for _ in range(3)))
    result.first[found], result.second[found] = first - begins[found], second - begins[found]
    result.length[found] = length
    return result


def _extended(tokens: NDArray[Any], first: Integers, second: Integers, ends: Integers) -> Integers:
    """How far both go on alike, without one running into the other or out of the window."""
    length = np.full_like(first, _SHORTEST)
    for place in range(_SHORTEST, SPAN_TOKENS):
        room = (second + place < ends) & (first + place < second) & (length == place)
        after = tokens[np.minimum(second + place, len(tokens) - 1)]
        length += room & (tokens[np.minimum(first + place, len(tokens) - 1)] == after)
    return length
