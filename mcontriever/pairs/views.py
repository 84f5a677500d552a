"""Views of text for learning without labels: crops with words deleted, made for a whole batch in a few array passes.

Pure functions of spans and random numbers; where both come from is the caller's business. Letters: V views (two a
pair), T tokens of all views together, views laid end to end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .counter import words_along
from .packing import Packed

LEAST_TOKENS = 4  # of a crop, where the text has as many: a tenth of a short text would be a single word piece

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def crop(sizes: Integers, low: float, high: float, for_length: Floats, for_start: Floats) -> tuple[Integers, Integers]:
    """Starts and lengths of crops that are `low` to `high` of their text; (V,) sizes and uniform numbers in [0, 1)."""
    lengths = (sizes * (low + (high - low) * for_length)).astype(np.int64)
    lengths = np.clip(lengths, np.minimum(LEAST_TOKENS, sizes), sizes)
    return (for_start * (sizes - lengths + 1)).astype(np.int64), lengths


def positions(starts: Integers, lengths: Integers) -> Integers:
    """start, start+1, … start+length-1 of each view, end to end: (T,)."""
    before = np.cumsum(lengths) - lengths
    flat: Integers = np.repeat(starts - before, lengths)
    flat += np.arange(len(flat))
    return flat


def keep(streams: NDArray[np.uint64], lengths: Integers, delete: float) -> NDArray[np.bool_]:
    """(T,) which tokens stay when each is deleted with probability `delete`; of every view at least the first stays."""
    kept = words_along(streams, lengths) >= np.uint64(delete * 2.0**64)
    starts = np.cumsum(lengths) - lengths
    kept[starts[np.add.reduceat(kept, starts, dtype=np.int64) == 0]] = True
    return kept


def wrap(tokens: NDArray[Any], lengths: Integers, order: Integers, bos: int, eos: int) -> tuple[Packed, Packed]:
    """Put bos and eos around each view and the views in their places; the first V/2 places are queries.

    `order` says to which place each of the V views goes.
    """
    final = np.empty_like(lengths)
    final[order] = lengths + 2
    ends = np.cumsum(final)
    ids = np.empty(ends[-1], dtype=np.int64)
    starts = ends - final
    ids[starts], ids[ends - 1] = bos, eos
    ids[positions(starts[order] + 1, lengths)] = tokens
    half = len(final) // 2
    flat, sizes = torch.from_numpy(ids), torch.from_numpy(final)
    cut = int(ends[half - 1])
    return Packed(flat[:cut], sizes[:half]), Packed(flat[cut:], sizes[half:])
