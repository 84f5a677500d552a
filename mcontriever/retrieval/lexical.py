"""BM25 over passages in many languages: what every dense retriever must be held against, and needs beside it.

Scoring is bm25s's (Lucene's variant, k1 0.9, b 0.4); what is ours is the analysis by language and the on-disk form,
which holds arrays and JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..corpus.formats import Passage
from ..errors import ArtifactError, DataError, require
from ..progress import bar, track
from .analysis import analyser, stemmer_name

K1, B = 0.9, 0.4
_FOLDER = "bm25"
_ANALYSIS = "analysis.json"
_FILES = ("data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json")


class LexicalIndex:
    """BM25 scores of every (term, passage), and the analysis they were made with."""

    def __init__(self, scores: Any, vocabulary: dict[str, int], stemmers: dict[str, str], count: int) -> None:
        self._scores, self._vocabulary, self.stemmers, self.count = scores, vocabulary, stemmers, count

    @classmethod
    def build(cls, passages: Iterable[Passage], count: int | None = None) -> LexicalIndex:
        """Analyse each passage in its language. Terms are numbered as they first appear: same input, same bytes.

        `count`, how many there are if that is known, is for the progress shown.
        """
        vocabulary: dict[str, int] = {}
        stemmers: dict[str, str] = {}
        rows: list[list[int]] = []
        for passage in track(passages, "BM25 terms", "passages", count):
            code = passage.language
            if code not in stemmers:
                stemmers[code] = stemmer_name(code)
            terms = analyser(code, stemmers[code])(f"{passage.title} {passage.text}")
            rows.append([vocabulary.setdefault(term, len(vocabulary)) for term in terms])
        if not vocabulary:
            raise DataError(f"no words in any of {len(rows)} passages; BM25 needs text (build with --lexical false)")
        scores = _empty()
        with bar("BM25 scores", len(vocabulary), "terms") as running:  # one call: bm25s tells nothing on the way
            scores.index((rows, vocabulary), create_empty_token=False, show_progress=False)
            running.advance(len(vocabulary))
        return cls(scores, vocabulary, stemmers, len(rows))

    def search(self, texts: Sequence[str], k: int, language: str | None = None) -> tuple[list[Any], list[Any]]:
        """For each text the scores and rows of its best passages, best first; fewer than k where fewer share a word.

        A text can only meet a passage as that passage's language was analysed, so by default it is analysed in every
        way the index was; `language` keeps to one of them (queries known to be in the language of the passages).
        """
        codes = [language] if language in self.stemmers else list(self.stemmers)
        analysers = [analyser(code, self.stemmers[code]) for code in codes]
        all_scores, all_rows = [], []
        for text in texts:
            ways = {tuple(terms(text)) for terms in analysers}
            # The same word stemmed alike by two analysers must not count twice; repeated within one text it does.
            counts: dict[str, int] = {}
            for way in sorted(ways):
                for term in way:
                    counts[term] = max(counts.get(term, 0), way.count(term))
            numbers = [self._vocabulary[t] for t, n in counts.items() if t in self._vocabulary for _ in range(n)]
            scores, rows = _best(self._scores.get_scores_from_ids(numbers), k)
            all_scores.append(scores)
            all_rows.append(rows)
        return all_scores, all_rows

    def save(self, folder: Path) -> None:
        """Write into a draft's folder."""
        self._scores.save(folder / _FOLDER, allow_pickle=False, show_progress=False)
        analysis = {"k1": K1, "b": B, "count": self.count, "stemmers": self.stemmers}
        (folder / _FOLDER / _ANALYSIS).write_text(json.dumps(analysis, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, artifact: Artifact) -> LexicalIndex:
        """Read from a verified artifact: only files its manifest lists, arrays and JSON, never a pickle."""
        try:
            data, indices, indptr = (
                np.load(artifact.file(f"{_FOLDER}/{name}"), allow_pickle=False) for name in _FILES[:3]
            )
            vocabulary = json.loads(artifact.file(f"{_FOLDER}/{_FILES[3]}").read_text(encoding="utf-8"))
            analysis = json.loads(artifact.file(f"{_FOLDER}/{_ANALYSIS}").read_text(encoding="utf-8"))
            count, stemmers = analysis["count"], analysis["stemmers"]
        except (ValueError, KeyError) as error:
            raise ArtifactError(f"{artifact.path}: its BM25 part is damaged ({error}); index again") from error
        if len(indptr) != len(vocabulary) + 1 or (len(indices) and indices.max() >= count):
            raise ArtifactError(f"{artifact.path}: its BM25 files do not belong together; index again")
        scores = _empty()
        scores.scores = {"data": data, "indices": indices, "indptr": indptr, "num_docs": count}
        scores.vocab_dict, scores.nonoccurrence_array = vocabulary, None
        return cls(scores, vocabulary, stemmers, count)


def _empty() -> Any:
    bm25s = require("bm25s", "search", "BM25")
    # numba, where installed, would compile for seconds at first use
    return bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy", auto_compile=False)


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of a text's scores (N,), ties in row order; a passage that shares no term is no result."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        # every row that ties with the k-th is kept until the sort, or the choice among ties would be partition's whim
        threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= threshold]
    order = np.lexsort((rows, -scores[rows]))[:k]
    return scores[rows][order], rows[order]
