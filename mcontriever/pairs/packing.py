"""Token sequences laid end to end instead of padded, because a padded batch of crops is two fifths padding.

Everything from the views to the attention works on this one layout, so no attention mask exists that could be wrong.
Letters: B sequences, T tokens of all of them together.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SettingsError


@dataclass(frozen=True, eq=False)
class Packed:
    """B token sequences end to end, their special tokens included."""

    ids: Tensor  # (T,) int64
    lengths: Tensor  # (B,) int64, each at least 1

    def __len__(self) -> int:
        return int(self.lengths.shape[0])

    @functools.cached_property
    def known_lengths(self) -> tuple[int, ...]:
        """The lengths for the host. `to` and `joined` hand them on: a GPU that is asked for them is waited for."""
        return tuple(self.lengths.tolist())

    @property
    def cu_seqlens(self) -> Tensor:
        """Where each sequence starts, and the end of the last: (B+1,) int64."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    def to(self, device: torch.device | str) -> Packed:
        """The same sequences on another device."""
        return _knowing(
            self.ids.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True), self.known_lengths
        )

    @classmethod
    def joined(cls, first: Packed, second: Packed) -> Packed:
        """The sequences of both, the first's first."""
        ids, lengths = torch.cat([first.ids, second.ids]), torch.cat([first.lengths, second.lengths])
        return _knowing(ids, lengths, first.known_lengths + second.known_lengths)

    def rows(self, start: int, stop: int) -> Packed:
        """Sequences start … stop-1, sharing memory with these."""
        begin, count = int(self.lengths[:start].sum()), int(self.lengths[start:stop].sum())
        return Packed(self.ids[begin : begin + count], self.lengths[start:stop])

    def split(self) -> list[Tensor]:
        """The B sequences one by one, as views of `ids`."""
        return list(self.ids.split(self.lengths.tolist()))

    @classmethod
    def of(cls, sequences: Sequence[NDArray[Any]]) -> Packed:
        """Pack sequences as they are; an empty one has no place in a batch."""
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ValueError(f"expected at least one sequence and no empty one, got lengths {lengths}")
        ids = np.concatenate(sequences).astype(np.int64)
        return cls(torch.from_numpy(ids), torch.tensor(lengths, dtype=torch.int64))


def _knowing(ids: Tensor, lengths: Tensor, known: tuple[int, ...]) -> Packed:
    packed = Packed(ids, lengths)
    packed.__dict__["known_lengths"] = known  # where functools.cached_property looks
    return packed


def pack(sequences: Sequence[NDArray[Any]], bos: int, eos: int, max_length: int) -> Packed:
    """Wrap each sequence in bos and eos, cut so that the whole fits `max_length`, and pack them."""
    if max_length < 2:
        raise ValueError(f"max_length must leave room for bos and eos, got {max_length}")
    edges = np.array([bos]), np.array([eos])
    return Packed.of([np.concatenate([edges[0], sequence[: max_length - 2], edges[1]]) for sequence in sequences])


@dataclass(frozen=True, eq=False)
class PairBatch:
    """B pairs. Rows of equal `group` are about the same thing and must never serve as each other's negatives."""

    query: Packed
    passage: Packed
    group: Tensor  # (B,) int64
    language: Tensor  # (B,) int64, an index into `languages`
    languages: tuple[str, ...]
    fallback: Tensor | None = None
    """(B,) bool, rows for which the text had not what the recipe asks and something plainer stands in; None where
    that cannot happen"""

    def __len__(self) -> int:
        return len(self.query)

    def rows(self, start: int, stop: int) -> PairBatch:
        """Pairs start … stop-1, sharing memory with these."""
        query, passage = self.query.rows(start, stop), self.passage.rows(start, stop)
        group, language = self.group[start:stop], self.language[start:stop]
        fallback = None if self.fallback is None else self.fallback[start:stop]
        return PairBatch(query, passage, group, language, self.languages, fallback)

    def parts_for(self, tokens: int) -> int:
        """The smallest number of parts for `cut` with none above `tokens` tokens, both views counted."""
        totals = self._totals()
        if (longest := _longest(totals)) > tokens:
            raise SettingsError(f"batch.tokens is {tokens}, but a pair has {longest} tokens; raise it to at least that")
        return len(_fill(totals, tokens))

    def cut(self, parts: int) -> list[PairBatch]:
        """Contiguous parts, the largest of which has as few tokens as can be."""
        if not 1 <= parts <= len(self):
            raise ValueError(f"expected 1 to {len(self)} parts, got {parts}")
        totals = self._totals()
        low, high = max(_longest(totals), -(-totals[-1] // parts)), totals[-1]
        while low < high:  # the smallest budget under which no more than `parts` come out
            middle = (low + high) // 2
            low, high = (low, middle) if len(_fill(totals, middle)) <= parts else (middle + 1, high)
        return [self.rows(start, stop) for start, stop in pairwise([0, *_fill(totals, low, parts)])]

    def _totals(self) -> list[int]:
        """(B+1,) tokens of all the pairs before each, and of all."""
        return [0, *(self.query.lengths + self.passage.lengths).cumsum(0).tolist()]

    def to(self, device: torch.device | str) -> PairBatch:
        """The same pairs on another device; `language` and `fallback` stay, they are only ever counted."""
        query, passage = self.query.to(device), self.passage.to(device)
        group = self.group.to(device, non_blocking=True)
        return PairBatch(query, passage, group, self.language, self.languages, self.fallback)

    def language_counts(self) -> dict[str, int]:
        """How many rows are of which language."""
        counts = torch.bincount(self.language, minlength=len(self.languages)).tolist()
        return {name: count for name, count in zip(self.languages, counts, strict=True) if count}


def padding_share(lengths: Tensor) -> float:
    """The share of a batch of sequences that would be padding, were they padded to the longest instead of packed."""
    return 1 - float(lengths.sum()) / (len(lengths) * int(lengths.max()))


def _longest(totals: list[int]) -> int:
    return max(stop - start for start, stop in pairwise(totals))


def _fill(totals: list[int], budget: int, least: int = 1) -> list[int]:
    """Where parts end when each takes all the rows its budget of tokens holds, and at least `least` parts come out."""
    ends, rows = [0], len(totals) - 1
    while ends[-1] < rows:
        fitting = bisect_right(totals, totals[ends[-1]] + budget) - 1
        ends.append(min(fitting, rows - (least - len(ends))))  # a row is left for each part still to come
    return ends[1:]
