"""Which language and which of its positions sample n is: a pure function of (seed, n), so resuming needs no state.

Languages are mixed in blocks that hold each exactly as often as the exponent or the weights say, and each goes through
all its positions once an epoch in an order that is computed rather than stored. Letters: L languages, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .counter import below, streams, words

_BLOCK = 4096
_ROUNDS = 6
_BLOCKS, _EPOCHS = 1, 2  # first part of the path of random streams, so that no two uses share one

Integers = NDArray[np.int64]


class Mixture:
    """Draws (language, position) for numbered samples; `sizes` says how many positions each language has."""

    def __init__(
        self, sizes: Sequence[int], exponent: float, seed: int, *, weights: Sequence[float] = (), together: int = 1
    ) -> None:
        """`weights` stand in for the exponent, and a language of weight 0 is not drawn.

        `together` samples, from a multiple of it on, are of one language.
        """
        self.sizes: Integers = np.array(sizes, dtype=np.int64)
        count = sum(weight > 0 for weight in weights) if weights else len(self.sizes)
        self.block = -(-_BLOCK // count) * count  # a multiple of that, so that equal shares are exactly equal
        self.quotas = share_out(weights, self.block) if weights else quotas(sizes, exponent, self.block)
        self._together = together
        self._seed = seed
        self._table = lru_cache(maxsize=8)(self._make_table)

    def draw(self, samples: Integers) -> tuple[Integers, Integers]:
        """(N,) languages and (N,) positions of the samples; any subset in any order gives the same for each."""
        draws, among = np.divmod(np.asarray(samples, dtype=np.int64), self._together)
        blocks, slots = np.divmod(draws, self.block)
        languages, turns = np.empty_like(slots), np.empty_like(slots)
        for block in np.unique(blocks):
            rows = blocks == block
            language_of_slot, turn_of_slot = self._table(int(block))
            languages[rows] = language_of_slot[slots[rows]]
            turns[rows] = turn_of_slot[slots[rows]]
        turns += blocks * self.quotas[languages]  # the how manieth draw of its language, counted from sample 0
        turns = turns * self._together + among
        sizes = self.sizes[languages]
        epochs, places = np.divmod(turns, sizes)
        return languages, permute(places, sizes, streams(self._seed, _EPOCHS, languages, epochs))

    def _make_table(self, block: int) -> tuple[Integers, Integers]:
        """Language of each slot of a block, and how many of that language came before in the block."""
        order = np.argsort(words(streams(self._seed, _BLOCKS, block), np.arange(self.block)), kind="stable")
        languages = np.repeat(np.arange(len(self.quotas)), self.quotas)[order]
        turns = np.empty_like(languages)
        starts = np.cumsum(self.quotas) - self.quotas
        by_language = np.argsort(languages, kind="stable")
        turns[by_language] = np.arange(self.block) - np.repeat(starts, self.quotas)
        return languages, turns


def quotas(sizes: Sequence[int], exponent: float, block: int) -> Integers:
    """Shares of `block` by size**exponent: exponent 0 treats all languages alike, 1 in proportion to their size."""
    if not sizes or min(sizes) < 1 or len(sizes) > block:
        raise ValueError(f"expected 1 to {block} sizes of at least 1, got {list(sizes)}")
    return share_out(((np.array(sizes, dtype=np.float64) / max(sizes)) ** exponent).tolist(), block)


def share_out(weights: Sequence[float], block: int) -> Integers:
    """Whole numbers that sum to `block`, as near as can be to the weights (largest remainder), 0 only for weight 0."""
    exact = np.array(weights, dtype=np.float64) * (block / sum(weights))
    counts: Integers = np.floor(exact).astype(np.int64)
    behind = np.where(exact > 0, counts - exact, 1)  # what weighs nothing gets nothing
    counts[np.argsort(behind, kind="stable")[: block - int(counts.sum())]] += 1
    for language in np.flatnonzero((counts == 0) & (exact > 0)):  # for the others the most frequent one makes room
        counts[np.argmax(counts)] -= 1
        counts[language] = 1
    return counts


def permute(places: Integers, sizes: Integers, keys: NDArray[np.uint64]) -> Integers:
    """Where each place of 0 … size-1 goes in the order its key names: for one key, a bijection of the range.

    A Feistel network over a rectangle hardly larger than the range; what lands outside goes through again.
    """
    sizes = np.broadcast_to(np.asarray(sizes, dtype=np.int64), places.shape)
    keys = np.broadcast_to(keys, places.shape)
    height = np.ceil(np.sqrt(sizes)).astype(np.int64)
    width = -(-sizes // height)
    result: Integers = _shuffle(places, height, width, keys)
    while (outside := np.flatnonzero(result >= sizes)).size:
        result[outside] = _shuffle(result[outside], height[outside], width[outside], keys[outside])
    return result


def _shuffle(places: Integers, height: Integers, width: Integers, keys: NDArray[np.uint64]) -> Integers:
    row, column = np.divmod(places, width)
    for turn in range(0, _ROUNDS, 2):
        row = (row + below(words(keys + np.uint64(turn), column), height)) % height
        column = (column + below(words(keys + np.uint64(turn + 1), row), width)) % width
    shuffled: Integers = row * width + column
    return shuffled
