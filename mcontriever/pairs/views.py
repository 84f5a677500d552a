"""Views of text for learning without labels: which spans of a window each is made of, for a whole batch at once.

Pure functions of sizes and random numbers; where both come from is the caller's business. A view is `Pieces`, starts
and lengths of the spans of its window that it is joined from. Letters: B pairs, V = 2B views, S spans a view, N spans
of all views, T tokens of all views together, views laid end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .counter import Words
from .noise import Tape
from .packing import Packed
from .recurring import Recurring

LEAST_TOKENS = 4  # of a crop, where the text has as many: a tenth of a short text would be a single word piece
LEAST_WINDOW = 2 * LEAST_TOKENS  # tokens, for views that do not overlap

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Pieces = tuple[Integers, Integers]  # (B, S) starts in the window and (B, S) lengths, 0 for none


@dataclass(frozen=True, eq=False)
class Spans:
    """The N spans that V views are joined from, in order."""

    starts: Integers  # (N,) in an array of tokens
    lengths: Integers  # (N,) each at least 1
    opens: Integers  # (N,) 1 for the first of a view, else 0
    closes: Integers  # (N,) 1 for the last of a view, else 0
    bits: Words  # (N,) random

    @classmethod
    def of(cls, starts: Integers, lengths: Integers, bits: Words) -> Spans:
        """From (V, S) starts, lengths and random words; empty ones are left out."""
        if lengths.shape[1] == 1:
            ones = np.ones(len(lengths), dtype=np.int64)
            return cls(starts[:, 0], lengths[:, 0], ones, ones, bits[:, 0])
        there = lengths > 0
        place = np.cumsum(there, axis=1)
        opens, closes = place == 1, place == place[:, -1:]
        edges = opens[there].astype(np.int64), closes[there].astype(np.int64)
        return cls(starts[there], lengths[there], *edges, bits[there])


def one_piece(starts: Integers, lengths: Integers) -> Pieces:
    """Views of a single span each."""
    return starts[:, None], lengths[:, None]


def inverse_cloze(starts: Integers, lengths: Integers, sizes: Integers, stays: Flags) -> tuple[Pieces, Pieces]:
    """Query: the span given. Passage: what is before and after it in the window, or where it `stays` all of that."""
    after, nothing = starts + lengths, np.zeros_like(starts)
    before = np.where(stays, sizes, starts)
    passage = np.stack([nothing, after], 1), np.stack([before, np.where(stays, 0, sizes - after)], 1)
    return (np.stack([starts, nothing], 1), np.stack([lengths, nothing], 1)), passage


def part(sizes: Integers, low: float, high: float, chances: Floats, least: int = LEAST_TOKENS) -> Integers:
    """Lengths that are `low` to `high` of their text, and `least` tokens where it has as many."""
    lengths = (sizes * (low + (high - low) * chances)).astype(np.int64)
    return np.clip(lengths, np.minimum(least, sizes), sizes)


def place(lengths: Integers, sizes: Integers, chances: Floats) -> Integers:
    """Where spans of these lengths start in their texts, any place alike."""
    return (chances * (sizes - lengths + 1)).astype(np.int64)


def crop(sizes: Integers, low: float, high: float, for_length: Floats, for_start: Floats) -> tuple[Integers, Integers]:
    """Starts and lengths of crops that are `low` to `high` of their text; (V,) sizes and uniform numbers in [0, 1)."""
    lengths = part(sizes, low, high, for_length)
    return place(lengths, sizes, for_start), lengths


def neighbours(
    sizes: Integers, firsts: Integers, seconds: Integers, for_start: Floats, swapped: Flags
) -> tuple[Pieces, Pieces]:
    """Two spans that touch, of lengths for which there is room; `swapped` where the later is the query."""
    starts = place(firsts + seconds, sizes, for_start)
    earlier, later = np.stack([starts, firsts]), np.stack([starts + firsts, seconds])
    query, passage = np.where(swapped, later, earlier), np.where(swapped, earlier, later)
    return one_piece(*query), one_piece(*passage)


def sharing(
    spans: Recurring,
    sizes: Integers,
    wanted: tuple[Integers, Integers],
    chances: Floats,
    stays: Flags,
    swapped: Flags,
) -> tuple[Pieces, Pieces]:
    """A span around each occurrence of what recurs, of the lengths wanted as far as they do not meet.

    So crop_min and crop_max are clipped: below to the recurring span and LEAST_TOKENS more, above to the window's part
    on this side of the middle between the occurrences. The recurring span itself is cut out of the query except where
    it `stays`; (B, 2) chances for the two places.
    """
    middle = (spans.first + spans.length + spans.second) // 2
    nothing = np.zeros_like(sizes)
    earlier, later = np.stack([spans.first, nothing, middle]), np.stack([spans.second, middle, sizes])
    sides = np.where(swapped, later, earlier), np.where(swapped, earlier, later)
    made = []
    for (at, low, high), asked, chance in zip(sides, wanted, chances.T, strict=True):
        length = np.clip(asked, np.minimum(spans.length + LEAST_TOKENS, high - low), high - low)
        first, last = np.maximum(low, at + spans.length - length), np.minimum(at, high - length)
        made.append((at, first + (chance * (last - first + 1)).astype(np.int64), length))
    (at, start, length), (_, other_start, other_length) = made
    whole = stays | (length == spans.length)
    after = at + spans.length
    before = np.where(whole, length, at - start)
    rest = np.where(whole, 0, start + length - after)
    return (
        (np.stack([start, after], 1), np.stack([before, rest], 1)),
        (np.stack([other_start, nothing], 1), np.stack([other_length, nothing], 1)),
    )


def join(tokens: NDArray[Any], spans: Spans, bos: int, eos: int, tape: Tape | None) -> Packed:
    """Put together the views, without the tokens that the tape deletes, and wrap each in bos and eos.

    One index says for every token of the result where it comes from. A span at the edge of its view has an index too
    many there, for bos or eos to be written over what it fetches.
    """
    kind = np.int32 if len(tokens) < 2**31 else np.int64
    places, starts, counts = tape.read(spans.bits, spans.lengths) if tape else (0, spans.starts, spans.lengths)
    sizes = counts + spans.opens + spans.closes
    ends = np.cumsum(sizes)
    begins = ends - sizes
    source = np.repeat((starts - spans.opens - begins).astype(kind), sizes)
    source += np.arange(ends[-1], dtype=kind)
    if tape:
        source = tape.kept.take(source, mode="clip")
        source += np.repeat((spans.starts - places).astype(kind), sizes)
    ids = tokens.take(source, mode="clip").astype(np.int64)
    firsts, lasts = np.flatnonzero(spans.opens), np.flatnonzero(spans.closes)
    ids[begins[firsts]], ids[ends[lasts] - 1] = bos, eos
    return Packed(torch.from_numpy(ids), torch.from_numpy(ends[lasts] - begins[firsts]))
