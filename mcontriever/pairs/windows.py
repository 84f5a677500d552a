"""The windows of text that views are made of: which there are, where they lie in the shards, and their tokens.

Letters: B windows asked for, N spans, T tokens of all spans together.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus import NO_ARTICLE, Shards
from ..errors import DataError
from .counter import Words, below

Integers = NDArray[np.int64]


class Windows:
    """The windows of every language, numbered from 0 in each. A document's windows share its tokens out evenly."""

    def __init__(
        self, shards: Shards, window: int, least: int = 1, borders: str = "document", left_out: Container[str] = ()
    ) -> None:
        """Languages that are `left_out` need not have a window."""
        self.languages = tuple(shards.languages)
        # plain arrays over the same pages: slicing a memmap object costs more than copying a crop
        self.tokens = [np.asarray(shards.tokens(language)) for language in self.languages]
        self._offsets = [np.asarray(shards.offsets(language)) for language in self.languages]
        self.articles = [np.asarray(shards.articles(language)) for language in self.languages]
        self._titles = [np.asarray(shards.titles(language)) for language in self.languages]
        self.least, self._window, self._crossing = least, window, borders == "corpus"
        documents = [len(articles) for articles in self.articles]
        # documents without an article are numbered after all articles, each language after the one before
        self._groups = shards.article_count + np.cumsum([0, *documents[:-1]])
        if self._crossing:
            self.counts = [len(tokens) // window - 1 for tokens in self.tokens]
            self.too_short = [0 for _ in self.languages]
        else:
            self._first = [_first_windows(offsets, window, least) for offsets in self._offsets]
            self.counts = [int(first[-1]) for first in self._first]
            self.too_short = [int((np.diff(first) == 0).sum()) for first in self._first]
        for language, offsets, count in zip(self.languages, self._offsets, self.counts, strict=True):
            if count < 1 and language not in left_out:
                longest = int(np.diff(offsets).max(initial=0))
                found = f"{offsets[-1]} tokens" if self._crossing else f"no document over {longest} tokens"
                wanted = f"{2 * window} for windows that cross borders" if self._crossing else f"one of {least} or more"
                raise DataError(
                    f"{shards.path}: language {language!r} has {found}, expected {wanted}; leave it out "
                    "(unlabelled.weights 0, or when preparing), or choose another unlabelled.view"
                )

    def locate(self, languages: Integers, windows: Integers, bits: Words) -> tuple[Integers, Integers, Integers]:
        """Document, first token and size of (B,) windows.

        Those that cross borders begin, by random words, anywhere in a stretch as long as they are, and count for the
        document they begin in.
        """
        documents, starts, sizes = np.empty_like(windows), np.empty_like(windows), np.empty_like(windows)
        for language, rows in rows_by_language(languages):
            offsets, wanted = self._offsets[language], windows[rows]
            if self._crossing:
                starts[rows] = wanted * self._window + below(bits[rows], self._window)
                documents[rows] = np.searchsorted(offsets, starts[rows], side="right") - 1
                sizes[rows] = self._window
                continue
            first = self._first[language]
            document = np.searchsorted(first, wanted, side="right") - 1
            part, parts = wanted - first[document], first[document + 1] - first[document]
            begin = offsets[document]
            length = offsets[document + 1] - begin
            start = length * part // parts
            documents[rows], starts[rows] = document, begin + start
            sizes[rows] = length * (part + 1) // parts - start
        return documents, starts, sizes

    def heads(self, languages: Integers, documents: Integers, longest: int) -> tuple[Integers, Integers]:
        """Where each document starts, and its length up to `longest` tokens."""
        starts = pick(self._offsets, languages, documents)
        return starts, np.minimum(pick(self._offsets, languages, documents + 1) - starts, longest)

    def titles(self, languages: Integers, documents: Integers) -> Integers:
        """How many tokens each document's title has, 0 for none."""
        return pick(self._titles, languages, documents)

    def any_of(self, languages: Integers, documents: Integers, bits: Words) -> Integers:
        """The number of one window of each document, by random words."""
        first = pick(self._first, languages, documents)
        return first + below(bits, pick(self._first, languages, documents + 1) - first)

    def article_of(self, languages: Integers, documents: Integers) -> Integers:
        """The article number of each document, or NO_ARTICLE."""
        return pick(self.articles, languages, documents)

    def groups(self, languages: Integers, documents: Integers) -> Integers:
        """What each document is about, as a number: its article, or itself where it has none."""
        articles = self.article_of(languages, documents)
        return np.where(articles == NO_ARTICLE, self._groups[languages] + documents, articles)

    def read(self, languages: Integers, starts: Integers, lengths: Integers) -> NDArray[Any]:
        """(T,) the tokens of (N,) spans, end to end."""
        spans = zip(languages.tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        tokens = self.tokens
        return np.concatenate([tokens[language][start:stop] for language, start, stop in spans])


def rows_by_language(languages: Integers) -> list[tuple[int, Integers]]:
    """Each language there is, and the rows it is in."""
    return [(int(language), np.flatnonzero(languages == language)) for language in np.unique(languages)]


def pick(arrays: list[NDArray[Any]], languages: Integers, places: Integers) -> Integers:
    """arrays[language][place] for each row."""
    values = np.empty_like(places)
    for language, rows in rows_by_language(languages):
        values[rows] = arrays[language][places[rows]]
    return values


def _first_windows(offsets: Integers, window: int, least: int) -> Integers:
    """(documents + 1,) the number of each document's first window, and how many there are; too short ones have none."""
    lengths = np.diff(offsets)
    counts = -(-lengths // window)
    counts[lengths < least] = 0
    return np.concatenate([[0], np.cumsum(counts)])
