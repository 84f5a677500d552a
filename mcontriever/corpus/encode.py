"""One piece of a crawl becomes one artifact: cleaned, tokenized, with all that finding duplicates later needs.

A piece's folder bears the hash of everything that decides what is in it, so that one made before, by this run or by one
that was killed, is found again, and one of other text or other settings never is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import workers
from ..artifact import open_artifact, writing
from ..errors import ArtifactError
from .cleaning import Cleaner, CleanSettings, Dropped
from .duplicates import Signatures, exact_key
from .formats import Document
from .readers import Piece, read_piece
from .report import BAD_LINES, BadLines
from .shards import GrowingArray
from .tokenizer import Tokenizer

KIND = "corpus piece"
FORMAT = 2  # a new one makes pieces of old versions strangers
TOO_FEW_TOKENS = "too_few_tokens"
# What is known of a document beside its tokens. `article` is a hash, odd, or 0 where there is none; `title` is how many
# of the tokens are its title's.
_FACTS = ("tokens", "title", "words", "characters", "article")
DOCUMENT = np.dtype([*((name, "<u8") for name in _FACTS), ("key", "<u8", (2,))])
_CHUNK_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done to every piece; `tokenizer` is a folder, and its `fingerprint` what is in it."""

    tokenizer: str
    fingerprint: str
    field: str
    language_field: str
    clean: CleanSettings
    min_tokens: int
    signatures: bool


@dataclass(frozen=True, kw_only=True)
class PieceTask:
    """One piece and where its artifact goes; with `strict` the first bad line is an error."""

    piece: Piece
    treatment: Treatment
    content: str
    """hash of the whole file"""
    folder: str
    strict: bool

    @property
    def out(self) -> Path:
        """The artifact's folder."""
        facts = asdict(self.treatment) | {"piece": asdict(self.piece), "content": self.content, "format": FORMAT}
        del facts["tokenizer"]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return Path(self.folder, f"piece-{name}")


def encode_piece(task: PieceTask) -> dict[str, Any]:
    """Make the artifact unless it is there and whole; returns its `meta`: what was read, dropped and bad."""
    if (found := workers.finished(task.out, KIND)) is not None:
        return found
    try:
        return _encode(task)
    except ArtifactError:  # a worker of a run that was killed a moment ago may have been faster
        if (found := workers.finished(task.out, KIND)) is None:
            raise
        return found


def _encode(task: PieceTask) -> dict[str, Any]:
    treatment = task.treatment
    tokenizer, cleaner = _load_tokenizer(treatment.tokenizer), Cleaner(treatment.clean)
    read = Counter[str]()
    dropped: dict[str, Counter[str]] = {}
    with writing(task.out, KIND) as draft, contextlib.ExitStack() as opened:
        bad = BadLines(draft.folder / BAD_LINES, strict=task.strict)
        places: dict[str, _LanguagePiece] = {}
        items = read_piece(task.piece, field=treatment.field, language_field=treatment.language_field)
        for chunk in _chunks(bad.taken_from(items)):
            documents: list[Document] = []
            kept: dict[str, list[tuple[Document, NDArray[np.int32], int]]] = {}
            for document in chunk:
                read[document.language] += 1
                outcome = cleaner.clean(document)
                if isinstance(outcome, Dropped):
                    dropped.setdefault(document.language, Counter())[outcome.reason] += 1
                else:
                    documents.append(outcome)
            encoded = tokenizer.encode_titled(
                [each.text for each in documents], [len(each.title) for each in documents]
            )
            for document, row, title in zip(documents, *encoded, strict=True):
                if len(row) < treatment.min_tokens:
                    dropped.setdefault(document.language, Counter())[TOO_FEW_TOKENS] += 1
                else:
                    kept.setdefault(document.language, []).append((document, row, title))
            for language, rows in kept.items():
                if language not in places:
                    place = _LanguagePiece(draft.folder, language, tokenizer.vocab_size, treatment.signatures)
                    places[language] = opened.enter_context(contextlib.closing(place))
                places[language].append(rows)
            workers.tick(len(chunk))
        draft.meta |= {
            "read": dict(sorted(read.items())),
            "dropped": {language: dict(sorted(reasons.items())) for language, reasons in sorted(dropped.items())},
            "kept": {language: place.count for language, place in sorted(places.items())},
            "bad": bad.count,
            "first_bad": bad.first,
        }
    return draft.meta


def load_piece(folder: Path | str, language: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.uint32] | None]:
    """(T,) tokens, (documents,) `DOCUMENT` rows and, if they were made, (documents, P) signatures, memory-mapped."""
    artifact = open_artifact(folder, KIND, verify=False)
    names = {name: f"{name}.{language}.npy" for name in ("tokens", "documents", "signatures")}
    tokens, documents = (
        np.load(artifact.file(names[name]), mmap_mode="r", allow_pickle=False) for name in ("tokens", "documents")
    )
    documents = documents.view(DOCUMENT)
    if documents["tokens"].sum() != len(tokens):
        raise ArtifactError(f"{folder}: {names['documents']} does not fit {names['tokens']}; remove the folder")
    if names["signatures"] not in artifact.files:
        return tokens, documents, None
    signatures = np.load(artifact.file(names["signatures"]), mmap_mode="r", allow_pickle=False)
    return tokens, documents, signatures.reshape(len(documents), -1)


class _LanguagePiece:
    """The documents of one language in one piece."""

    def __init__(self, folder: Path, language: str, vocab_size: int, signatures: bool) -> None:
        self._tokens = GrowingArray(folder / f"tokens.{language}.npy", np.min_scalar_type(vocab_size - 1))
        self._documents = GrowingArray(folder / f"documents.{language}.npy", np.uint64)
        self._signing = Signatures() if signatures else None
        self._signatures = GrowingArray(folder / f"signatures.{language}.npy", np.uint32) if signatures else None

    def append(self, rows: list[tuple[Document, NDArray[np.int32], int]]) -> None:
        """Add documents, their tokens and how many of those are the title's."""
        facts = np.zeros(len(rows), dtype=DOCUMENT)
        for number, (document, tokens, title) in enumerate(rows):
            key = np.frombuffer(exact_key(document.text), dtype="<u8")
            words = len(document.text.split())
            facts[number] = (len(tokens), title, words, len(document.text), _article_hash(document.article), key)
        self._tokens.append(np.concatenate([tokens for _, tokens, _ in rows]))
        self._documents.append(facts.view(np.uint64))
        if self._signing is not None and self._signatures is not None:
            self._signatures.append(self._signing.of_many([document.text for document, *_ in rows]).reshape(-1))

    @property
    def count(self) -> int:
        """How many documents there are."""
        return self._documents.count // (DOCUMENT.itemsize // 8)

    def close(self) -> None:
        """State the lengths."""
        for array in (self._tokens, self._documents, self._signatures):
            if array is not None:
                array.close()


def _article_hash(article: str | None) -> int:
    if article is None:
        return 0
    return int.from_bytes(hashlib.blake2b(article.encode(), digest_size=8).digest(), "little") | 1


_load_tokenizer = functools.lru_cache(maxsize=1)(Tokenizer.load)  # once a process; its folder bears its hash


def _chunks(documents: Iterator[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
