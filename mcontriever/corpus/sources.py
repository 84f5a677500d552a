"""Where `prepare` reads from: files in a folder, or a Hugging Face dataset, behind one face.

Either is read several times from start to end and never held; what was read is known by a hash, so that an output made
from the same text before can be told from any other.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..artifact import blocks, sha256
from ..errors import DataError
from ..progress import bar, track
from .formats import Document, document_files, language_of, read_documents, read_hub, unread_files


@dataclass
class Survey:
    """What a first reading finds: documents and characters per language."""

    documents: dict[str, int] = field(default_factory=dict)
    characters: dict[str, int] = field(default_factory=dict)


class Source(Protocol):
    """Documents that can be read again and again."""

    name: str

    def documents(self, language: str = "") -> Iterator[Document]:
        """All of them, or those of one language, in an order that stays."""

    @property
    def survey(self) -> Survey:
        """Every document is read and checked once, the first time this is asked for."""

    def fingerprint(self) -> Any:
        """What decides the text, as JSON: equal only if the text is."""


class Files:
    """A folder of text files, or one file; see `read_documents`."""

    def __init__(self, path: str, field: str) -> None:
        self.name, self._field = path, field
        self._files = document_files(path)
        if passed_over := unread_files(path):
            sys.stderr.write(f"{path}: not read, as their names are not of the form <lang>.jsonl or <lang>.txt: ")
            sys.stderr.write(f"{', '.join(passed_over)}\n")

    def documents(self, language: str = "") -> Iterator[Document]:
        """See `Source`."""
        for file in self._files:
            if not language or language_of(file) == language:
                yield from read_documents(file, self._field)

    @cached_property
    def survey(self) -> Survey:
        """See `Source`."""
        return _take(self)

    def fingerprint(self) -> Any:
        """Names and bytes of the files, wherever they lie."""
        with bar("Reading", sum(map(blocks, self._files)), "MiB") as running:
            hashes = [[file.name, sha256(file, running)] for file in self._files]
        return {"field": self._field, "files": hashes}


class Hub:
    """One split of a Hugging Face dataset in one language, streamed anew at every reading; see `read_hub`."""

    def __init__(self, dataset: str, split: str, language: str, field: str) -> None:
        self.name, self._language = f"{dataset}[{split}]", language
        self._read: Callable[[], Iterator[Document]] = lambda: read_hub(dataset, split, language, field)
        self._digest = hashlib.sha256()

    def documents(self, language: str = "") -> Iterator[Document]:
        """See `Source`."""
        if language in ("", self._language):
            yield from self._read()

    @cached_property
    def survey(self) -> Survey:
        """See `Source`. The text is hashed on the way: a name on the hub says nothing of what lies there today."""
        return _take(self, lambda document: self._digest.update(_line(document)))

    def fingerprint(self) -> Any:
        """The text itself with its ids, and how many documents there are."""
        return {"language": self._language, "documents": self.survey.documents, "text": self._digest.hexdigest()}


def _line(document: Document) -> bytes:
    return json.dumps([document.id, document.article, document.text], ensure_ascii=False).encode() + b"\n"


def _take(source: Source, notice: Callable[[Document], None] = lambda document: None) -> Survey:
    survey = Survey()
    for document in track(source.documents(), "Checking", "documents"):
        notice(document)
        language = document.language
        survey.documents[language] = survey.documents.get(language, 0) + 1
        survey.characters[language] = survey.characters.get(language, 0) + len(document.text)
    if not survey.documents:
        raise DataError(f"{source.name}: there is no document in it")
    return survey


def is_language_code(text: str) -> bool:
    """Whether a file's name could state this language: `sw`, `zh-Hant`."""
    return language_of(Path(f"{text}.txt")) == text != ""
