"""Text to BM25 terms, language by language: what "a word" is differs too much for one rule.

Words keep their combining marks (a plain `\\w` cuts Bengali, Hindi and Telugu words into single letters), scripts
written without spaces become overlapping character pairs wherever they occur, and Snowball stems the languages it
knows. It is not Lucene's analysis, and scores differ a little from Lucene's.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ArtifactError, require
from ..languages import language

# Scripts written without spaces between words, and Hangul, whose particles are glued to the word before them.
_UNSPACED = "".join(
    rf"\p{{scx={script}}}" for script in ("Han", "Hira", "Kana", "Hang", "Thai", "Khmr", "Laoo", "Mymr")
)
# scx also holds digits and punctuation shared with these scripts; only letters and marks make pairs.
_PATTERN = rf"(?P<run>(?:[[{_UNSPACED}]&&[\p{{L}}\p{{M}}]])+)|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}&&\p{{L}}]]+"
_JOINERS = dict.fromkeys(map(ord, "\u00ad\u200b\u200d\u2060\ufeff"))  # invisible inside words
_TURKISH = str.maketrans({"İ": "i", "I": "ı"})


def stemmer_name(code: str) -> str:
    """The Snowball algorithm for a language code, or "" where there is none (words then stay as they are)."""
    stemmer = require("Stemmer", "search", "BM25")
    name = language(code).name.lower()
    return name if code and name in stemmer.algorithms() else ""


@functools.cache
def analyser(code: str, stemmer: str) -> Callable[[str], list[str]]:
    """The function from text to terms for a language code and a Snowball algorithm ("" for none)."""
    regex = require("regex", "search", "BM25")
    pattern = regex.compile(_PATTERN, regex.V1)
    clusters = regex.compile(r"\X")
    stem = _stemming(stemmer)
    turkish = code in ("tr", "az")

    def terms(text: str) -> list[str]:
        text = unicodedata.normalize("NFKC", text).translate(_JOINERS)
        text = (text.translate(_TURKISH) if turkish else text).lower()
        found: list[str] = []
        words: list[str] = []
        for match in pattern.finditer(text):
            if match["run"]:
                found += _pairs(clusters.findall(match["run"]))
            else:
                words.append(match[0])
        return found + list(stem(words))

    return terms


def _stemming(name: str) -> Callable[[list[str]], Iterable[str]]:
    if not name:
        return lambda words: words
    library: Any = require("Stemmer", "search", "BM25")
    try:
        return library.Stemmer(name).stemWords  # type: ignore[no-any-return]
    except KeyError as error:
        raise ArtifactError(
            f"the index was made with the Snowball stemmer {name!r}, which the installed PyStemmer lacks; index again"
        ) from error


def _pairs(clusters: list[str]) -> list[str]:
    """Overlapping pairs of user-perceived characters; a lone one stands for itself."""
    if len(clusters) < 2:
        return clusters
    return [first + second for first, second in itertools.pairwise(clusters)]
