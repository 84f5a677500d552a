"""Which span of a text says most about it: scores that the views `salient` and `spans` choose by.

A scorer is anything with the signature of `Scorer`. One here counts, in the corpus (BM25, after AugTriever's pseudo-
queries, arXiv 2212.08841); one asks an encoder, which lives further up the house and is handed in as a function.
Letters: B windows, C candidate spans of each, T tokens of all windows together, L languages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .packing import Packed, pack
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
    """The dot product of a span's vector and its window's. Batches are as pure as the encoder: keep it frozen."""

    def __init__(self, embed: Callable[[Packed], Tensor], bos: int, eos: int, max_length: int) -> None:
        self._embed, self._bos, self._eos, self._max_length = embed, bos, eos, max_length

    def __call__(
        self, tokens: NDArray[Any], sizes: Integers, languages: Integers, starts: Integers, lengths: Integers
    ) -> Floats:
        """Similarity of each span to its window."""
        begins = np.cumsum(sizes) - sizes
        first = begins[:, None] + starts
        spans = zip(first.ravel().tolist(), lengths.ravel().tolist(), strict=True)
        whole = zip(begins.tolist(), sizes.tolist(), strict=True)
        vectors = [self._vectors([tokens[at : at + size] for at, size in texts]) for texts in (spans, whole)]
        scores = torch.einsum("bcd,bd->bc", vectors[0].view(*starts.shape, -1), vectors[1])
        return scores.double().numpy()

    def _vectors(self, texts: list[NDArray[Any]]) -> Tensor:
        with torch.no_grad():
            return self._embed(pack(texts, self._bos, self._eos, self._max_length)).float().cpu()
