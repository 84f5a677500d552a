"""Pairs without labels: two views of one window of a document, or of two language versions of one article.

A sample is a pure function of (seed, its global number): which ranks ask, for which others, and after how many
restarts makes no difference. Letters: B samples asked for, V = 2B views, S spans a view is joined from, T tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..corpus import NO_ARTICLE, Shards
from ..errors import DataError, SettingsError, did_you_mean
from . import choosing
from .choosing import Chooser, Texts
from .comparable import Versions
from .counter import Words, streams, uniform, words
from .mixture import Mixture
from .noise import Noise, Tape
from .packing import PairBatch
from .salience import Scorer
from .sentences import TITLE_TOKENS
from .unlabelled_settings import UnlabelledSettings
from .views import LEAST_WINDOW, Flags, Spans, join
from .windows import Integers, Windows

__all__ = ["UnlabelledPairs", "UnlabelledSettings"]

_CHOICES = 3  # first part of the path of random streams: 1, 2 mixture.py, 4-6 noise.py, 8, 9 choosing.py
_AHEAD = 2048  # samples made at once: at fewer, NumPy's calls cost more than the work in them
_AHEAD_SCORED = 64  # by a scorer from outside: enough to keep an encoder busy, few enough to be there in time
_KEPT = 16  # kinds of request (micro-batches of a step) whose samples made ahead are kept


class UnlabelledPairs:
    """Batches of pairs from shards. `windows` says how many each language has, an epoch of it."""

    def __init__(
        self, shards: Shards, settings: UnlabelledSettings, seed: int, *, scorer: Scorer | None = None
    ) -> None:
        """`scorer` is for view salient; without one the statistics of the corpus decide."""
        self.settings, self.tokenizer, self._seed, self._path = settings, shards.tokenizer(), seed, shards.path
        least = 1 if settings.view == "crop" else LEAST_WINDOW
        self._weights = weights_in_order(settings.weights, shards.languages)
        self._undrawn = {language for language, weight in settings.weights.items() if not weight}
        self._windows = Windows(shards, settings.window, least, settings.window_borders, self._undrawn)
        self.languages, self.windows = self._windows.languages, self._windows.counts
        self._mixtures: dict[int, Mixture] = {}
        self._chooser = Chooser(settings, self._windows, self.tokenizer, seed, scorer)
        self._tape = Tape(seed, settings.delete, settings.window) if settings.delete else None
        self._noise = Noise(
            self.tokenizer, seed, replace=settings.replace, mask=settings.mask, shuffle=settings.shuffle
        )
        self._ahead = _AHEAD_SCORED if scorer else _AHEAD
        self._made: dict[tuple[int, bytes], tuple[int, PairBatch]] = {}
        self._one_at_a_time = threading.Lock()
        if settings.comparable:
            articles = zip(self.languages, self._windows.articles, strict=True)
            self._versions = Versions([numbers if self.draws(name) else numbers[:0] for name, numbers in articles])
            if not self._versions.any_pair:
                raise DataError(
                    f"{shards.path}: comparable is {settings.comparable:g}, but no article is there in two languages; "
                    "give the documents an 'article' key, or set comparable to 0"
                )

    def batch(self, step: int, samples: NDArray[np.integer], batch_size: int) -> PairBatch:
        """The pairs of some `samples` (0 … batch_size-1) of a step's global batch.

        Small batches are made for several steps at once and kept until they are asked for.
        """
        # one at a time: a guard that draws a step again must not take what another thread makes ahead from under it
        with self._one_at_a_time:
            return self._batch(step, np.asarray(samples, dtype=np.int64), batch_size)

    def _batch(self, step: int, samples: Integers, batch_size: int) -> PairBatch:
        count, steps = len(samples), max(1, self._ahead // len(samples))
        block, place = divmod(step, steps)
        key = batch_size, samples.tobytes()
        if key not in self._made or self._made[key][0] != block:
            numbers = (block * steps + np.arange(steps))[:, None] * batch_size + samples
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[key] = block, self._make(numbers.ravel(), self._mixture(batch_size))
        made = self._made[key][1]
        return made if steps == 1 else made.rows(place * count, (place + 1) * count)

    def left_out(self) -> str:
        """Which languages are not drawn, and how many documents of the others are too short; empty where all serve."""
        short = zip(self.languages, self._windows.too_short, strict=True)
        counts = ", ".join(f"{count:,} of {language}" for language, count in short if count and self.draws(language))
        too_short = f"too short for view {self.settings.view} (under {self._windows.least} tokens): {counts}"
        undrawn = f"left out by unlabelled.weights 0: {', '.join(sorted(self._undrawn))}"
        return "; ".join([too_short] * bool(counts) + [undrawn] * bool(self._undrawn))

    def draws(self, language: str) -> bool:
        """Whether pairs come from a language at all."""
        return language not in self._undrawn

    @property
    def total(self) -> int:
        """Windows of all languages that are drawn."""
        return sum(count for count, name in zip(self.windows, self.languages, strict=True) if self.draws(name))

    def _mixture(self, batch_size: int) -> Mixture:
        together = batch_size if self.settings.unmixed else 1
        if together not in self._mixtures:
            self.require(batch_size)
            self._mixtures[together] = Mixture(
                self.windows, self.settings.exponent, self._seed, weights=self._weights, together=together
            )
        return self._mixtures[together]

    def require(self, batch_size: int) -> None:
        """Complain of a language with fewer windows than a batch of it takes: a step would hold a window twice."""
        pairs = zip(self.windows, self.languages, strict=True)
        scarce = [(count, name) for count, name in pairs if count < batch_size and self.draws(name)]
        if self.settings.unmixed and scarce:
            count, language = min(scarce)
            raise DataError(
                f"{self._path}: language {language!r} has {count} windows of text, unlabelled.unmixed needs "
                f"batch.size {batch_size} of each; lower it, or leave the language out (unlabelled.weights 0)"
            )

    def _make(self, numbers: Integers, mixture: Mixture) -> PairBatch:
        draws = words(streams(self._seed, _CHOICES, numbers)[:, None], np.arange(choosing.DRAWS))  # (B, DRAWS)
        languages, windows = mixture.draw(numbers)
        documents, starts, sizes = self._windows.locate(languages, windows, draws[:, choosing.BORDER])
        groups = self._windows.groups(languages, documents)
        spans, titles, alone = [(languages, starts, sizes)], np.zeros_like(documents), None
        if self.settings.comparable:
            other, alone = self._other_versions(languages, documents, starts, sizes, draws)
            spans.append(other)
        elif self.settings.view == "title":
            spans.insert(0, (languages, *self._windows.heads(languages, documents, TITLE_TOKENS)))
            titles = self._windows.titles(languages, documents)
        read = [np.concatenate(parts) for parts in zip(*spans, strict=True)]
        tokens, distances = self._windows.read(*read), starts - spans[0][1]
        texts = Texts(numbers, draws, languages, tokens, spans[0][2], spans[-1][2], distances, titles)
        (starts, lengths), (other_starts, other_lengths), fallback = self._chooser.choose(texts)
        fallback = alone if fallback is None else fallback
        begins, count = np.cumsum(read[2]) - read[2], len(numbers)
        pieces = Spans.of(
            np.concatenate([begins[:count, None] + starts, begins[-count:, None] + other_starts]),
            np.concatenate([lengths, other_lengths]),
            np.concatenate([draws[:, tape][:, : lengths.shape[1]] for tape in choosing.TAPES]),
        )
        packed = join(tokens, pieces, self.tokenizer.bos, self.tokenizer.eos, self._tape)
        if self._noise.any:
            self._noise.apply(packed, np.concatenate([numbers * 2, numbers * 2 + 1]))
        halves = packed.rows(0, count), packed.rows(count, 2 * count)
        told = None if fallback is None else torch.from_numpy(fallback)
        return PairBatch(*halves, torch.from_numpy(groups), torch.from_numpy(languages), self.languages, told)

    def _other_versions(
        self, languages: Integers, documents: Integers, starts: Integers, sizes: Integers, draws: Words
    ) -> tuple[tuple[Integers, Integers, Integers], Flags]:
        """Language, first token and size of the passages' windows: another version's where chance and corpus allow.

        Also (B,) where chance asked for another version and there is none.
        """
        languages, starts, sizes = languages.copy(), starts.copy(), sizes.copy()
        articles = self._windows.article_of(languages, documents)
        wanted = uniform(draws[:, choosing.COIN]) < self.settings.comparable
        chosen = np.flatnonzero(wanted & (articles != NO_ARTICLE))
        there, (others, versions) = self._versions.choose(
            articles[chosen], languages[chosen], draws[chosen, choosing.VERSION]
        )
        chosen = chosen[there]
        alone = wanted.copy()
        alone[chosen] = False
        window = self._windows.any_of(others, versions, draws[chosen, choosing.WINDOW])
        languages[chosen] = others
        _, starts[chosen], sizes[chosen] = self._windows.locate(others, window, draws[chosen, choosing.BORDER])
        return (languages, starts, sizes), alone


def weights_in_order(weights: Mapping[str, float], languages: Sequence[str]) -> list[float]:
    """A recipe's weights as the shards have their languages; none stay none."""
    for name in weights:
        if name not in languages:
            raise SettingsError(f"unlabelled.weights: the shards have no {name!r}; {did_you_mean(name, languages)}")
    if missing := [name for name in languages if weights and name not in weights]:
        raise SettingsError(
            f"unlabelled.weights: none for {', '.join(missing)}; give one for each language of the shards, "
            "or 0 to leave it out"
        )
    return [weights[name] for name in languages] if weights else []
