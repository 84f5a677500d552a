"""Which span of a text says most about it: scores that the views `salient` and `spans` choose by.

A scorer is anything with the signature of `Scorer`. One here counts, in the corpus (BM25, after AugTriever's pseudo-
queries, arXiv 2212.08841); one asks an encoder, which lives further up the house and is handed in as a function.
Letters: B windows, C candidate spans of each, T tokens of all windows together, L languages.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .packing import Packed
from .views import Spans, join
from .windows import Windows

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_COUNTED = 5000  # documents of a language whose first windows the statistics are taken from, spread over all of it
_ONE = 2**20  # a weight of 1 in sums of whole numbers
_K1, _B = 0.9, 0.4  # Anserini's, as for the lexical retrieval here


class Scorer(Protocol):
    """Scores candidate spans as queries for the windows they are in: the higher, the more they say about it."""

    def __call__(
        self, tokens: NDArray[Any], sizes: Integers, languages: Integers, starts: Integers, lengths: Integers
    ) -> Floats:
        """(T,) tokens of (B,) windows end to end, (B, C) starts in the window and lengths, to (B, C) scores."""
        ...


class Statistics:
    """How rare the tokens of each language are in its documents."""

    def __init__(self, windows: Windows, vocab_size: int) -> None:
        self._idf = np.empty((len(windows.languages), vocab_size), dtype=np.float32)  # (L, vocabulary)
        self._mean_size = np.empty(len(windows.languages))
        for language, count in enumerate(windows.counts):
            if not count:  # left out: nobody will ask
                continue
            chosen = np.unique(np.linspace(0, count - 1, _COUNTED).astype(np.int64))
            whose = np.full(len(chosen), language)
            _, starts, sizes = windows.locate(whose, chosen, np.zeros(len(chosen), dtype=np.uint64))
            keys = np.repeat(np.arange(len(chosen)) * vocab_size, sizes) + windows.read(whose, starts, sizes)
            found = np.bincount(np.unique(keys) % vocab_size, minlength=vocab_size)
            self._idf[language] = np.log1p((len(chosen) - found + 0.5) / (found + 0.5))
            self._mean_size[language] = sizes.mean()

    def rarity(self, tokens: NDArray[Any], languages: Integers) -> NDArray[np.float32]:
        """(T,) inverse document frequency of each token in its (T,) language."""
        rarity: NDArray[np.float32] = self._idf[languages, tokens]
        return rarity

    def __call__(
        self, tokens: NDArray[Any], sizes: Integers, languages: Integers, starts: Integers, lengths: Integers
    ) -> Floats:
        """BM25's weight of each span in its window, a token on average: the sum would choose the longest candidate."""
        windows = np.repeat(np.arange(len(sizes)), sizes)
        _, term, often = np.unique(windows * self._idf.shape[1] + tokens, return_inverse=True, return_counts=True)
        occurrences = often[term]
        norm = _K1 * (1 - _B + _B * sizes / self._mean_size[languages])
        weights = self.rarity(tokens, languages[windows]) * (_K1 + 1) * occurrences / (occurrences + norm[windows])
        # whole numbers, so that a sum does not depend on what else is in the batch, and equal spans score the same
        sums = np.concatenate([[0], np.cumsum((weights * _ONE).astype(np.int64))])
        first = (np.cumsum(sizes) - sizes)[:, None] + starts
        scores: Floats = (sums[first + lengths] - sums[first]) / (lengths * _ONE)
        return scores


class EncoderSalience:
    """The dot product of a span's vector and its window's, from a frozen encoder that takes token ids as they are.

    A window of 256 tokens and 16 spans of it make some 450 tokens of forward pass for one pair: 1.6 times the
    arithmetic of a step with MoCo, 0.6 times in-batch's, for an encoder of the same size on the same device. Batches
    are pure but for rounding, which may decide between two spans that score alike.
    """

    def __init__(self, embed: Callable[[Packed], Tensor], bos: int, eos: int, batch_tokens: int = 2**15) -> None:
        """`embed` is given about `batch_tokens` tokens at a time, however many pairs are asked for."""
        self._embed, self._bos, self._eos, self._batch_tokens = embed, bos, eos, batch_tokens

    def __call__(
        self, tokens: NDArray[Any], sizes: Integers, languages: Integers, starts: Integers, lengths: Integers
    ) -> Floats:
        """Similarity of each span to its window."""
        begins = np.cumsum(sizes) - sizes
        first = np.concatenate([starts + begins[:, None], begins[:, None]], axis=1)  # (B, C+1), the window the last
        length = np.concatenate([lengths, sizes[:, None]], axis=1)
        nothing = np.zeros((first.size, 1), dtype=np.uint64)  # the random words of what is to be deleted: nothing
        spans = Spans.of(first.reshape(-1, 1), length.reshape(-1, 1), nothing)
        packed = join(tokens, spans, self._bos, self._eos, None)
        parts = packed.lengths.cumsum(0).numpy() // self._batch_tokens
        edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(packed)]
        with torch.no_grad():
            made = [self._embed(packed.rows(start, stop)).float().cpu() for start, stop in pairwise(edges)]
        vectors = torch.cat(made).view(*first.shape, -1)  # (B, C+1, D)
        scores: Floats = torch.einsum("bcd,bd->bc", vectors[:, :-1], vectors[:, -1]).double().numpy()
        return scores
