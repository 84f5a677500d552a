"""Pairs without labels: two crops of one window of a document, or of two language versions of one article.

A sample is a pure function of (seed, its global number): which ranks ask, for which others, and after how many
restarts makes no difference. Letters: B samples asked for, V = 2B views, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ..corpus import NO_ARTICLE, Shards
from ..errors import DataError, SettingsError
from ..settings import in_range
from . import views
from .counter import below, streams, uniform, words
from .mixture import Mixture
from .packing import Packed, PairBatch

_CHOICES, _DELETIONS = 3, 4  # first part of the path of random streams; mixture.py has 1 and 2
_QUERY_LENGTH, _QUERY_START, _PASSAGE_LENGTH, _PASSAGE_START, _COIN, _VERSION, _WINDOW = range(7)

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class UnlabelledSettings:
    """Pairs of crops from token shards."""

    shards: str = ""
    """folder that `mcontriever prepare` wrote"""
    window: int = 256
    """longest stretch of one document that both crops come from, in tokens"""
    crop_min: float = 0.1
    """shortest crop, as a part of the window"""
    crop_max: float = 0.5
    """longest crop, as a part of the window"""
    delete: float = 0.1
    """probability with which each token of a crop is deleted"""
    comparable: float = 0.0
    """how often the second crop comes from another language version of the same article, where there is one"""
    exponent: float = 0.0
    """languages are drawn in proportion to size**exponent: 0 all alike, 1 by size"""

    def __post_init__(self) -> None:
        in_range("unlabelled.window", self.window, 8, 2**20)
        in_range("unlabelled.crop_min", self.crop_min, 0, 1, low_open=True)
        in_range("unlabelled.crop_max", self.crop_max, 0, 1, low_open=True)
        in_range("unlabelled.delete", self.delete, 0, 1, high_open=True)
        in_range("unlabelled.comparable", self.comparable, 0, 1)
        in_range("unlabelled.exponent", self.exponent, 0, 4)
        if self.crop_min > self.crop_max:
            raise SettingsError(
                f"unlabelled.crop_min must not exceed unlabelled.crop_max, got {self.crop_min} and {self.crop_max}"
            )


class UnlabelledPairs:
    """Batches of crop pairs from shards."""

    def __init__(self, shards: Shards, settings: UnlabelledSettings, seed: int) -> None:
        self.settings, self.tokenizer = settings, shards.tokenizer()
        self.languages = tuple(shards.languages)
        self._seed = seed
        self._tokens = [shards.tokens(language) for language in self.languages]
        self._offsets = [shards.offsets(language) for language in self.languages]
        self._articles = [shards.articles(language) for language in self.languages]
        self._first_windows = [_first_windows(offsets, settings.window) for offsets in self._offsets]
        documents = [len(articles) for articles in self._articles]
        # documents without an article are numbered after all articles, each language after the one before
        self._groups = shards.article_count + np.cumsum([0, *documents[:-1]])
        self.windows = [int(windows[-1]) for windows in self._first_windows]
        self._mixture = Mixture(self.windows, settings.exponent, seed)
        if settings.comparable:
            self._versions = _Versions(self._articles)
            if not self._versions.any_pair:
                raise DataError(
                    f"{shards.path}: comparable is {settings.comparable:g}, but no article is there in two languages; "
                    "give the documents an 'article' key, or set comparable to 0"
                )

    def batch(self, step: int, samples: NDArray[np.integer], batch_size: int) -> PairBatch:
        """The pairs of some `samples` (0 … batch_size-1) of a step's global batch."""
        numbers = step * batch_size + np.asarray(samples, dtype=np.int64)
        draws = words(streams(self._seed, _CHOICES, numbers)[:, None], np.arange(7))  # (B, 7)
        chances = uniform(draws)
        languages, windows = self._mixture.draw(numbers)
        documents, starts, sizes = self._locate(languages, windows)
        articles = _pick(self._articles, languages, documents)
        groups = np.where(articles == NO_ARTICLE, self._groups[languages] + documents, articles)

        others = languages.copy()
        other_starts, other_sizes = starts.copy(), sizes.copy()
        if self.settings.comparable:
            chosen = np.flatnonzero((chances[:, _COIN] < self.settings.comparable) & (articles != NO_ARTICLE))
            there, found = self._versions.choose(articles[chosen], languages[chosen], draws[chosen, _VERSION])
            chosen = chosen[there]
            others[chosen], versions = found
            window = self._any_window(others[chosen], versions, draws[chosen, _WINDOW])
            _, other_starts[chosen], other_sizes[chosen] = self._locate(others[chosen], window)

        low, high = self.settings.crop_min, self.settings.crop_max
        at, length = views.crop(sizes, low, high, chances[:, _QUERY_LENGTH], chances[:, _QUERY_START])
        other_at, other_length = views.crop(
            other_sizes, low, high, chances[:, _PASSAGE_LENGTH], chances[:, _PASSAGE_START]
        )
        query, passage = self._read(
            numbers,
            np.concatenate([languages, others]),
            np.concatenate([starts + at, other_starts + other_at]),
            np.concatenate([length, other_length]),
        )
        return PairBatch(query, passage, torch.from_numpy(groups), torch.from_numpy(languages), self.languages)

    def _read(
        self, numbers: Integers, languages: Integers, starts: Integers, lengths: Integers
    ) -> tuple[Packed, Packed]:
        """Tokens of (V,) spans, thinned and packed. They are read language by language and put back in order."""
        order = np.argsort(languages, kind="stable")
        languages, starts, lengths = languages[order], starts[order], lengths[order]
        source = views.positions(starts, lengths)
        tokens = np.empty(len(source), dtype=np.uint32)
        ends = np.cumsum(lengths)
        present, first = np.unique(languages, return_index=True)
        borders = [0, *ends[first[1:] - 1].tolist(), len(source)]
        for language, (begin, end) in zip(present.tolist(), pairwise(borders), strict=True):
            tokens[begin:end] = self._tokens[language][source[begin:end]]
        if self.settings.delete:
            sides = streams(self._seed, _DELETIONS, np.concatenate([numbers * 2, numbers * 2 + 1])[order])
            kept = views.keep(sides, lengths, self.settings.delete)
            tokens, lengths = tokens[kept], np.add.reduceat(kept, ends - lengths, dtype=np.int64)
        return views.wrap(tokens, lengths, order, self.tokenizer.bos, self.tokenizer.eos)

    def _locate(self, languages: Integers, windows: Integers) -> tuple[Integers, Integers, Integers]:
        """Document, first token and size of windows. A document's windows share its tokens out evenly."""
        documents, starts, sizes = np.empty_like(windows), np.empty_like(windows), np.empty_like(windows)
        for language in np.unique(languages):
            rows = np.flatnonzero(languages == language)
            first, offsets = self._first_windows[language], self._offsets[language]
            document = np.searchsorted(first, windows[rows], side="right") - 1
            part, parts = windows[rows] - first[document], first[document + 1] - first[document]
            begin = offsets[document]
            length = offsets[document + 1] - begin
            start = length * part // parts
            documents[rows], starts[rows] = document, begin + start
            sizes[rows] = length * (part + 1) // parts - start
        return documents, starts, sizes

    def _any_window(self, languages: Integers, documents: Integers, bits: NDArray[np.uint64]) -> Integers:
        first = _pick(self._first_windows, languages, documents)
        return first + below(bits, _pick(self._first_windows, languages, documents + 1) - first)


class _Versions:
    """Which documents are versions of an article: all (article, language) keys in order, and their documents."""

    def __init__(self, articles: list[Integers]) -> None:
        self._languages = len(articles)
        keys, documents = [], []
        for language, numbers in enumerate(articles):
            with_article = np.flatnonzero(numbers != NO_ARTICLE)
            keys.append(numbers[with_article] * self._languages + language)
            documents.append(with_article)
        order = np.argsort(np.concatenate(keys), kind="stable")
        self._keys, self._documents = np.concatenate(keys)[order], np.concatenate(documents)[order]
        distinct = np.unique(self._keys) // self._languages
        self.any_pair = bool((distinct[1:] == distinct[:-1]).any())

    def choose(
        self, articles: Integers, languages: Integers, bits: NDArray[np.uint64]
    ) -> tuple[Integers, tuple[Integers, Integers]]:
        """A document of the article in another language: the rows that have one, and its (language, document)."""
        own = articles * self._languages + languages
        begin, end = np.searchsorted(self._keys, [articles * self._languages, (articles + 1) * self._languages])
        own_begin, own_end = np.searchsorted(self._keys, own), np.searchsorted(self._keys, own, side="right")
        count = (end - begin) - (own_end - own_begin)
        rows = np.flatnonzero(count > 0)
        entry = begin[rows] + below(bits[rows], count[rows])
        entry = np.where(entry >= own_begin[rows], entry + (own_end - own_begin)[rows], entry)
        return rows, (self._keys[entry] % self._languages, self._documents[entry])


def _first_windows(offsets: Integers, window: int) -> Integers:
    """(documents + 1,) the number of each document's first window, and how many there are."""
    counts = -(-np.diff(offsets) // window)
    return np.concatenate([[0], np.cumsum(counts)])


def _pick(arrays: list[Integers], languages: Integers, places: Integers) -> Integers:
    """arrays[language][place] for each row."""
    values = np.empty_like(places)
    for language in np.unique(languages):
        rows = np.flatnonzero(languages == language)
        values[rows] = arrays[language][places[rows]]
    return values
