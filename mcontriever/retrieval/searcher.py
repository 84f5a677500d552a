"""A question in any language, passages in any language, the best of them: the Python face of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..corpus.formats import Passage
from ..errors import ArtifactError, DataError, UsageError
from ..progress import bar, track
from .index import DenseIndex, check_k, open_index
from .lexical import LexicalIndex
from .shard import encode_chunks
from .store import PassageStore
from .vectors import check_encoder

if TYPE_CHECKING:
    from ..encoder import Encoder


@dataclass(frozen=True)
class Hit:
    """One retrieved passage; `rank` counts from 1."""

    id: str
    title: str
    text: str
    language: str
    score: float
    rank: int


class Searcher:
    """An encoder and the passages it has embedded."""

    def __init__(
        self,
        encoder: Encoder | None,
        dense: DenseIndex,
        passages: PassageStore | Sequence[Passage],
        lexical: LexicalIndex | None = None,
    ) -> None:
        self._encoder, self._dense, self._passages, self._lexical = encoder, dense, passages, lexical
        self._rows_of: dict[str, np.ndarray] | None = None

    @classmethod
    def from_passages(
        cls, encoder: Encoder, passages: Sequence[Passage | str | tuple[str, str]], *, batch_tokens: int | None = None
    ) -> Searcher:
        """Embed and index in memory: texts, (title, text) pairs or `Passage`s; ids default to 0, 1 ..."""
        known = [_as_passage(passage, number) for number, passage in enumerate(passages)]
        if not known:
            raise UsageError("no passages were given; a searcher needs at least one")
        vectors = []
        with bar("Embedding", len(known), "passages") as running:
            for _, rows in encode_chunks(encoder, known, batch_tokens):
                vectors.append(rows)
                running.advance(len(rows))
        return cls(encoder, DenseIndex.build(np.concatenate(vectors)), known)

    @classmethod
    def open(
        cls, path: Path | str, encoder: Encoder | None = None, checkpoint: str | None = None, device: str | None = None
    ) -> Searcher:
        """Open a folder written by `mcontriever index`, with the encoder that made it.

        The encoder is the one given, else loaded from `checkpoint`, else from where the index says it was; in every
        case its fingerprint must be the index's.
        """
        artifact, passages = open_index(path)
        made_by = artifact.meta["encoder"]
        if encoder is None:
            encoder = _load(Path(path), checkpoint or made_by["checkpoint"], device)
        check_encoder(artifact.path, made_by, encoder)
        lexical = LexicalIndex.load(artifact) if artifact.meta["lexical"] else None
        return cls(encoder, DenseIndex.load(artifact), passages, lexical)

    @classmethod
    def open_lexical(cls, path: Path | str) -> Searcher:
        """Open for BM25 alone: no encoder is loaded, only `search_lexical` answers."""
        artifact, passages = open_index(path)
        if not artifact.meta["lexical"]:
            raise ArtifactError(f"{path}: was built without BM25; index again with --lexical true")
        return cls(None, DenseIndex.load(artifact), passages, LexicalIndex.load(artifact))

    def __len__(self) -> int:
        return len(self._passages)

    def search(self, query: str, k: int = 10, language: str | None = None) -> list[Hit]:
        """The k best passages for a query, best first; `language` keeps to passages of that language."""
        return self.search_many([query], k, language)[0]

    def search_many(self, queries: Sequence[str], k: int = 10, language: str | None = None) -> list[list[Hit]]:
        """As `search`, for several queries at once, which is much faster."""
        if self._encoder is None:
            raise UsageError("this searcher was opened for BM25 alone; open it with Searcher.open to search by meaning")
        check_queries(queries)
        among = self._among(language)
        check_k(k, len(self) if among is None else len(among))  # before the encoder works for nothing
        if not queries:
            return []
        return self.search_vectors(self._encoder.encode_queries(list(queries)), k, language)

    def search_vectors(self, vectors: np.ndarray, k: int = 10, language: str | None = None) -> list[list[Hit]]:
        """As `search_many`, for queries (Q, D) that this searcher's encoder has embedded already."""
        scores, rows = self._dense.search(vectors, k, self._among(language))
        return [self._hits(*pair) for pair in zip(scores, rows, strict=True)]

    def search_lexical(self, query: str, k: int = 10) -> list[Hit]:
        """The best passages by BM25: those that share a word with the query, so perhaps fewer than k, perhaps none."""
        if self._lexical is None:
            raise UsageError("there is no BM25 index here; build one with `mcontriever index`")
        check_queries([query])
        check_k(k, len(self))
        scores, rows = self._lexical.search([query], k)
        return self._hits(scores[0], rows[0])

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        hits = []
        for rank, (score, row) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True), start=1):
            passage = self._passages[row]
            hits.append(Hit(passage.id, passage.title, passage.text, passage.language, score, rank))
        return hits

    def _among(self, language: str | None) -> np.ndarray | None:
        if language is None:
            return None
        if self._rows_of is None:
            rows: dict[str, list[int]] = {}
            for row, passage in enumerate(track(self._passages, "Languages", "passages", len(self))):
                rows.setdefault(passage.language, []).append(row)
            self._rows_of = {code: np.asarray(numbers, dtype=np.int64) for code, numbers in rows.items()}
        if language not in self._rows_of:
            raise UsageError(f"no passage is in language {language!r}; there are: {', '.join(sorted(self._rows_of))}")
        return self._rows_of[language]


def _load(path: Path, checkpoint: str, device: str | None) -> Encoder:
    from ..encoder import load

    if Path(checkpoint).is_absolute() and not Path(checkpoint).is_dir():
        raise UsageError(f"{path}: its encoder is not at {checkpoint} (any more); say where with --checkpoint")
    return load(checkpoint, device=device)


def check_queries(queries: Sequence[str]) -> None:
    """Refuse, for BM25 too, what the encoder refuses, before either is asked; a query is typed, so it is usage."""
    from ..encoder.texts import as_query, refuse_string

    try:
        refuse_string(queries)
        for number, query in enumerate(queries):
            as_query(query, "the query" if len(queries) == 1 else f"query {number}")
    except DataError as error:
        raise UsageError(str(error)) from error


def _as_passage(passage: Passage | str | tuple[str, str], number: int) -> Passage:
    if isinstance(passage, Passage):
        return passage
    title, text = ("", passage) if isinstance(passage, str) else passage
    return Passage(str(number), title, text, "")
