"""Noise on views: tokens deleted, replaced, masked or moved, each with a probability of its own.

Deleting is on in the usual recipe and decides how fast batches are made, so it draws no number for a token: what stays
is written once on a long tape, and every span of a view reads the tape from a place of its own. Letters: N spans,
V views, T tokens of all views together, special ones included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..corpus import Tokenizer
from .counter import Words, below, mix, streams, uniform, words, words_along
from .packing import Packed

Integers = NDArray[np.int64]
Narrow = NDArray[np.int32]

_TAPE, _MOVES, _CHANGES = 5, 6, 7  # first part of the path of random streams; mixture.py, unlabelled.py have others
_TAPE_LENGTH = 2**20  # tokens; twice the longest span is the least that leaves any choice of places
_REACH = 3  # places a moved token goes on at most, others moving back for it


class Tape:
    """A long row of tokens of which each was deleted with one probability, as a function of the seed."""

    def __init__(self, seed: int, delete: float, longest: int) -> None:
        length = max(_TAPE_LENGTH, 4 * longest)
        stays = words(streams(seed, _TAPE), np.arange(length)) >= np.uint64(delete * 2.0**64)
        self.kept: Narrow = np.flatnonzero(stays).astype(np.int32)  # where tokens stay
        self._before: Narrow = np.concatenate([[0], np.cumsum(stays)]).astype(np.int32)  # how many stay before a place
        self._places = len(self._before) - longest

    def read(self, bits: Words, lengths: Integers) -> tuple[Integers, Narrow, Narrow]:
        """For (N,) spans, by random words: where each begins on the tape, and its stretch of `kept`: start and length.

        A span that would lose all its tokens begins where it keeps the first.
        """
        places = below(bits, self._places)
        starts = self._before[places]
        counts = self._before[places + lengths] - starts
        lost = np.flatnonzero(counts == 0)
        places[lost], counts[lost] = self.kept[starts[lost]], 1
        return places, starts, counts


class Noise:
    """Tokens replaced by random ones, masked, or moved up to three places on; bos and eos are left alone."""

    def __init__(self, tokenizer: Tokenizer, seed: int, *, replace: float, mask: float, shuffle: float) -> None:
        special = [tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk, tokenizer.mask]
        self._content = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
        self._mask, self._seed = tokenizer.mask, seed
        self._replaced, self._masked, self._moved = replace, replace + mask, shuffle
        self.any = bool(self._masked or shuffle)

    def apply(self, packed: Packed, views: Integers) -> None:
        """Change the ids of (V,) views in place, as a function of the views' numbers."""
        ids, lengths = packed.ids.numpy(), packed.lengths.numpy()
        ends = np.cumsum(lengths)
        inside = np.ones(len(ids), dtype=bool)
        inside[ends - lengths] = inside[ends - 1] = False
        if self._moved:
            bits = words_along(streams(self._seed, _MOVES, views), lengths)
            moved = inside & (uniform(bits) < self._moved)
            # whole numbers, 2**32 to a place: with fractions the order could depend on where in the batch a view lies
            keys = np.arange(len(ids), dtype=np.int64) << 32
            keys[moved] += (1 << 31) + _REACH * (mix(bits[moved]) >> np.uint64(32)).astype(np.int64)
            last = np.repeat((ends << 32) - (3 << 31), lengths)  # between a view's last token and its eos
            ids[:] = ids[np.argsort(np.where(inside, np.minimum(keys, last), keys), kind="stable")]
        if self._masked:
            bits = words_along(streams(self._seed, _CHANGES, views), lengths)
            chances = uniform(bits)
            ids[inside & (chances < self._masked)] = self._mask
            replaced = np.flatnonzero(inside & (chances < self._replaced))
            ids[replaced] = self._content[below(mix(bits[replaced]), len(self._content))]
