"""Which documents are language versions of one article, for pairs across languages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..corpus import NO_ARTICLE
from .counter import Words, below

Integers = NDArray[np.int64]


class Versions:
    """All (article, language) keys in order, and their documents; (documents,) article numbers for each language."""

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
        self, articles: Integers, languages: Integers, bits: Words
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
