"""Token shards: the form in which training reads text, one flat memory-mapped array of token ids a language.

Once verified, opening costs nothing however large the corpus is, every rank shares the same pages, and document
borders and article numbers lie beside the tokens so that views never have to guess them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact, open_artifact
from ..errors import ArtifactError
from .tokenizer import Tokenizer

KIND = "token shards"
NO_ARTICLE = -1
_HEADER_BYTES = 128


class Shards:
    """An opened artifact of shards. Per language: `tokens`, `offsets` of its documents, and their `articles`."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.path = artifact.path
        self.languages: list[str] = list(artifact.meta["languages"])
        self.vocab_size = int(artifact.meta["vocab_size"])
        self.article_count = int(artifact.meta["articles"])
        for language in self.languages:
            offsets = self.offsets(language)
            if offsets[0] != 0 or offsets[-1] != len(self.tokens(language)):
                raise ArtifactError(f"{self.path}: offsets.{language}.npy does not fit tokens.{language}.npy")

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Shards:
        """Open and check; with `verify=False` (ranks other than the one that verified) no file is read through.

        Sizes and the ends of the offsets are still looked at, which takes the same short time for any corpus.
        """
        return cls(open_artifact(path, KIND, verify=verify))

    def tokens(self, language: str) -> NDArray[Any]:
        """(T,) all token ids of a language, document after document, without special tokens."""
        return self._array("tokens", language)

    def offsets(self, language: str) -> NDArray[np.int64]:
        """(documents + 1,) where each document starts in `tokens`, and the end of the last."""
        return self._array("offsets", language)

    def articles(self, language: str) -> NDArray[np.int64]:
        """(documents,) article numbers, equal for language versions of one article; NO_ARTICLE where there is none."""
        return self._array("articles", language)

    @property
    def fingerprint(self) -> str:
        """One hash of languages, tokens, borders, articles and tokenizer; not of where they lie or came from."""
        content = [self.languages, sorted((name, facts["sha256"]) for name, facts in self._artifact.files.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the shards were made with."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.load(self.path / "tokenizer")
        if tokenizer.fingerprint != self._artifact.meta["tokenizer"]:
            raise ArtifactError(f"{self.path}: its tokenizer gives other ids than the one it was made with")
        return tokenizer

    def _array(self, name: str, language: str) -> NDArray[Any]:
        file = self._artifact.file(f"{name}.{language}.npy")
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        return array


class LanguageWriter:
    """Writes one language's three arrays chunk by chunk, so that memory does not grow with the corpus."""

    def __init__(self, folder: Path, language: str, vocab_size: int) -> None:
        dtype = np.min_scalar_type(vocab_size - 1)
        self._tokens = _GrowingArray(folder / f"tokens.{language}.npy", dtype)
        self._offsets = _GrowingArray(folder / f"offsets.{language}.npy", np.dtype(np.int64))
        self._articles = _GrowingArray(folder / f"articles.{language}.npy", np.dtype(np.int64))
        self._offsets.append(np.zeros(1, dtype=np.int64))

    def append(self, documents: list[NDArray[np.int32]], articles: Iterable[int]) -> None:
        """Add documents with their article numbers."""
        if not documents:
            return
        ends = self._tokens.count + np.cumsum([len(document) for document in documents])
        self._tokens.append(np.concatenate(documents))
        self._offsets.append(ends)
        self._articles.append(np.array(list(articles)))

    @property
    def documents(self) -> int:
        """How many were written."""
        return self._articles.count

    @property
    def tokens(self) -> int:
        """How many tokens they have together."""
        return self._tokens.count

    def __enter__(self) -> LanguageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in (self._tokens, self._offsets, self._articles):
            array.close()


class _GrowingArray:
    """A one-dimensional .npy file whose length is known only at the end: the header is written again then."""

    def __init__(self, file: Path, dtype: np.dtype[Any]) -> None:
        self._dtype, self.count = dtype.newbyteorder("<"), 0
        self._stream: IO[bytes] = file.open("wb")
        self._stream.write(self._header())

    def append(self, values: NDArray[Any]) -> None:
        self._stream.write(values.astype(self._dtype).tobytes())
        self.count += len(values)

    def close(self) -> None:
        self._stream.seek(0)
        self._stream.write(self._header())
        self._stream.close()

    def _header(self) -> bytes:
        magic = np.lib.format.magic(1, 0)
        size = _HEADER_BYTES - len(magic) - 2
        text = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': ({self.count},), }}"
        return magic + struct.pack("<H", size) + (text.ljust(size - 1) + "\n").encode("latin1")
