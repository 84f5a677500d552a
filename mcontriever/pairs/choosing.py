"""From random numbers to views: each setting of `view` as one short method over a batch of windows.

What the methods call are pure functions of other modules; here is only which random word decides what, so that no two
decisions of a sample share one. Letters: B pairs, S spans a view is joined from, C candidate spans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus import Tokenizer
from . import recurring, sentences, views
from .counter import Words, streams, uniform, words
from .salience import Scorer, Statistics
from .unlabelled_settings import UnlabelledSettings
from .views import LEAST_TOKENS, Flags, Pieces
from .windows import Integers, Windows

Views = tuple[Pieces, Pieces, Flags | None]
"""Queries, passages, and (B,) which of them are not what the view asks; None for views that every window allows."""

QUERY_LENGTH, QUERY_START, PASSAGE_LENGTH, PASSAGE_START, COIN, VERSION, WINDOW, SENTENCE = range(8)
TAPES = slice(8, 10), slice(10, 12)  # of queries and of passages, a word for each of at most two spans
BORDER, SWAP, DRAWS = 12, 13, 14
_CANDIDATES, _RECURRING = 8, 9  # first part of the path of random streams; unlabelled.py lists them
_SPANS_SCORED = 16  # of a window, as in AugTriever


@dataclass(frozen=True, eq=False)
class Texts:
    """What views are made of: B windows that queries come from, and B (mostly the same) for passages."""

    numbers: Integers  # (B,) of the samples
    draws: Words  # (B, DRAWS)
    languages: Integers  # (B,) of the queries' windows
    tokens: NDArray[Any]  # of all windows, end to end, the queries' first
    sizes: Integers  # (B,) of the queries' windows
    other_sizes: Integers  # (B,) of the passages' windows
    distances: Integers  # (B,) from the start of the query's window to that of the passage's
    titles: Integers  # (B,) tokens of the document's title, with which view title's query window begins; 0 for none

    @property
    def query_tokens(self) -> NDArray[Any]:
        """Those of the queries' windows."""
        return self.tokens[: self.sizes.sum()]


class Chooser:
    """Chooses the query's and the passage's spans as the recipe says; places count from the start of each window."""

    def __init__(
        self, settings: UnlabelledSettings, windows: Windows, tokenizer: Tokenizer, seed: int, scorer: Scorer | None
    ) -> None:
        makers: dict[str, Callable[[Texts], Views]] = {
            "crop": self._crops,
            "ict": self._inverse_cloze,
            "neighbour": self._neighbours,
            "title": self._title,
            "spans": self._recurring,
            "salient": self._salient,
        }
        self.choose = makers[settings.view]
        self._settings, self._seed = settings, seed
        self._low, self._high = settings.crop_min, settings.crop_max
        if settings.view in ("ict", "title"):
            self._sentence_ends = sentences.SentenceEnds(tokenizer)
        if settings.view == "spans" or (settings.view == "salient" and scorer is None):
            self._statistics = Statistics(windows, tokenizer.vocab_size)
        if settings.view == "salient":
            self._scorer = scorer or self._statistics

    def _crops(self, texts: Texts) -> Views:
        query = self._crop(texts, texts.sizes, QUERY_LENGTH, QUERY_START)
        passage = self._crop(texts, texts.other_sizes, PASSAGE_LENGTH, PASSAGE_START)
        return views.one_piece(*query), views.one_piece(*passage), None

    def _inverse_cloze(self, texts: Texts) -> Views:
        """A window without a sentence of a length that fits gives a crop in its place."""
        longest = np.clip((texts.sizes * self._high).astype(np.int64), LEAST_TOKENS, texts.sizes - LEAST_TOKENS)
        ends = self._sentence_ends(texts.tokens)
        sentence = sentences.pick(ends, texts.sizes, longest, texts.draws[:, SENTENCE])
        start, length = self._crop(texts, texts.sizes, QUERY_LENGTH, QUERY_START)
        found = sentence[1] > 0
        start, length = np.where(found, sentence, (start, np.minimum(length, longest)))
        stays = self._chance(texts, COIN) < self._settings.ict_keep
        return *views.inverse_cloze(start, length, texts.sizes, stays), ~found

    def _neighbours(self, texts: Texts) -> Views:
        first, second = (
            views.part(texts.sizes, self._low, self._high, self._chance(texts, draw))
            for draw in (QUERY_LENGTH, PASSAGE_LENGTH)
        )
        swapped = self._chance(texts, SWAP) < 0.5
        return *views.neighbours(texts.sizes, first, second, self._chance(texts, QUERY_START), swapped), None

    def _title(self, texts: Texts) -> Views:
        """The query's text is the head of the document, the passage's a window of it: what the title takes is left.

        Without a title the first sentence stands for it. Of one too long the beginning is taken, and that is told.
        """
        longest = np.minimum(texts.sizes, self._settings.window // 2) - LEAST_TOKENS
        ends = self._sentence_ends(texts.query_tokens)
        sentence = sentences.first(ends, texts.sizes, longest)
        sentence_cut = ~ends[np.cumsum(texts.sizes) - texts.sizes + sentence - 1]
        stated = texts.titles > 0
        title = np.where(stated, np.minimum(texts.titles, longest), sentence)
        cut = np.where(stated, texts.titles > longest, sentence_cut)
        taken = np.maximum(title - texts.distances, 0)
        start, length = self._crop(texts, texts.other_sizes - taken, PASSAGE_LENGTH, PASSAGE_START)
        return views.one_piece(np.zeros_like(title), title), views.one_piece(start + taken, length), cut

    def _recurring(self, texts: Texts) -> Views:
        """A window in which nothing recurs gives two crops."""
        rarity = self._statistics.rarity(texts.tokens, np.repeat(texts.languages, texts.sizes))
        spans = recurring.find(texts.tokens, texts.sizes, rarity, streams(self._seed, _RECURRING, texts.numbers))
        crops = (
            self._crop(texts, texts.sizes, QUERY_LENGTH, QUERY_START),
            self._crop(texts, texts.sizes, PASSAGE_LENGTH, PASSAGE_START),
        )
        sharing = views.sharing(
            spans,
            texts.sizes,
            (crops[0][1], crops[1][1]),
            uniform(texts.draws[:, [QUERY_START, PASSAGE_START]]),
            self._chance(texts, COIN) < self._settings.span_keep,
            self._chance(texts, SWAP) < 0.5,
        )
        none = np.zeros_like(texts.sizes)
        plain = [(np.stack([at, none], 1), np.stack([size, none], 1)) for at, size in crops]
        found = spans.length > 0
        query, passage = (
            (np.where(found[:, None], one[0], other[0]), np.where(found[:, None], one[1], other[1]))
            for one, other in zip(sharing, plain, strict=True)
        )
        return query, passage, ~found

    def _salient(self, texts: Texts) -> Views:
        """Of some random spans the one that scores best, and the rest."""
        bits = words(streams(self._seed, _CANDIDATES, texts.numbers)[:, None], np.arange(2 * _SPANS_SCORED))
        chances = uniform(bits)
        longest = np.minimum(self._settings.salient_length, texts.sizes - LEAST_TOKENS)[:, None]
        lengths = LEAST_TOKENS + (chances[:, :_SPANS_SCORED] * (longest - LEAST_TOKENS + 1)).astype(np.int64)  # (B, C)
        starts = views.place(lengths, texts.sizes[:, None], chances[:, _SPANS_SCORED:])
        best = self._scorer(texts.tokens, texts.sizes, texts.languages, starts, lengths).argmax(1)[:, None]
        start, length = (np.take_along_axis(values, best, 1)[:, 0] for values in (starts, lengths))
        stays = self._chance(texts, COIN) < self._settings.ict_keep
        return *views.inverse_cloze(start, length, texts.sizes, stays), None

    def _crop(self, texts: Texts, sizes: Integers, length: int, start: int) -> tuple[Integers, Integers]:
        return views.crop(sizes, self._low, self._high, self._chance(texts, length), self._chance(texts, start))

    def _chance(self, texts: Texts, draw: int) -> NDArray[np.float64]:
        return uniform(texts.draws[:, draw])
