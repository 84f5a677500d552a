"""Token shards: the form in which training reads text, one flat memory-mapped array of token ids a language.

Once verified, opening costs nothing however large the corpus is, every rank shares the same pages, and document
borders and article numbers lie beside the tokens so that views never have to guess them.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..artifact import Artifact, open_artifact
from ..errors import ArtifactError
from .tokenizer import Tokenizer

KIND = "token shards"
NO_ARTICLE = -1
_HEADER_BYTES = 128
_BLOCK = 2**22
_CONTENT = re.compile(r"(tokens|offsets|articles|titles)\..+\.npy|tokenizer/.+")


class Shards:
    """An opened artifact. Per language: `tokens`, `offsets` of its documents, their `articles` and `titles`."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.path = artifact.path
        try:
            self.languages: list[str] = [str(language) for language in artifact.meta["languages"]]
            self.vocab_size = int(artifact.meta["vocab_size"])
            self.article_count = int(artifact.meta["articles"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.path}: its manifest is damaged ({error!r}); write the folder again") from error
        for language in self.languages:
            offsets, articles = self.offsets(language), self.articles(language)
            if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(self.tokens(language)):
                raise ArtifactError(f"{self.path}: offsets.{language}.npy does not fit tokens.{language}.npy")
            if len(offsets) != len(articles) + 1:
                raise ArtifactError(f"{self.path}: articles.{language}.npy does not fit offsets.{language}.npy")
            if len(self.titles(language)) != len(articles):
                raise ArtifactError(f"{self.path}: titles.{language}.npy does not fit offsets.{language}.npy")

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> Shards:
        """Open and check; with `verify=False` (ranks other than the one that verified) no file is read through.

        Sizes and the ends of the offsets are still looked at, which takes the same short time for any corpus.
        """
        shards = cls(open_artifact(path, KIND, verify=verify))
        if verify:
            for language in shards.languages:
                shards._check_content(language)
        return shards

    def _check_content(self, language: str) -> None:
        """What checksums cannot tell: that a program wrote what training can use."""
        for block in _blocks(self.offsets(language), overlap=1):
            if (np.diff(block) <= 0).any():
                raise ArtifactError(f"{self.path}: offsets.{language}.npy does not rise; prepare the shards again")
        for name, array, bound in (
            ("tokens", self.tokens(language), self.vocab_size),
            ("articles", self.articles(language), self.article_count),
        ):
            most = max((int(block.max()) for block in _blocks(array)), default=0)
            if most >= bound > 0:
                what = "the vocabulary has" if name == "tokens" else "articles are"
                raise ArtifactError(f"{self.path}: {name}.{language}.npy holds number {most}, but {what} {bound}")
        offsets, titles = self.offsets(language), self.titles(language)
        for start in range(0, len(titles), _BLOCK):
            if (titles[start : start + _BLOCK] > np.diff(offsets[start : start + _BLOCK + 1])).any():
                raise ArtifactError(f"{self.path}: titles.{language}.npy has a title longer than its document")

    def tokens(self, language: str) -> NDArray[Any]:
        """(T,) all token ids of a language, document after document, without special tokens."""
        return self._array("tokens", language)

    def offsets(self, language: str) -> NDArray[np.int64]:
        """(documents + 1,) where each document starts in `tokens`, and the end of the last."""
        return self._array("offsets", language)

    def articles(self, language: str) -> NDArray[np.int64]:
        """(documents,) article numbers, equal for language versions of one article; NO_ARTICLE where there is none."""
        return self._array("articles", language)

    def titles(self, language: str) -> NDArray[np.uint32]:
        """(documents,) how many tokens of each document are its title's, the first; 0 where it has none."""
        if f"titles.{language}.npy" in self._artifact.files:
            return self._array("titles", language)
        return np.broadcast_to(np.uint32(0), len(self.articles(language)))

    @property
    def fingerprint(self) -> str:
        """One hash of languages, tokens, borders, articles, titles and tokenizer; not of where they lie."""
        files = self._artifact.files.items()
        content = [self.languages, sorted((name, facts["sha256"]) for name, facts in files if _CONTENT.fullmatch(name))]
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


def _blocks(array: NDArray[Any], overlap: int = 0) -> Iterator[NDArray[Any]]:
    return (array[start : start + _BLOCK + overlap] for start in range(0, len(array), _BLOCK))


class GrowingArray:
    """A one-dimensional .npy file whose length is known only at the end: the header is written again then.

    The file is open only while something is added: a piece of a crawl may hold more languages than files may be open.
    """

    def __init__(self, file: Path, dtype: DTypeLike) -> None:
        self._file, self._dtype, self.count = file, np.dtype(dtype).newbyteorder("<"), 0
        file.write_bytes(self._header())

    def append(self, values: NDArray[Any]) -> None:
        """Add to the end."""
        with self._file.open("ab") as stream:
            stream.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.count += len(values)

    def close(self) -> None:
        """State the length; before, the file says it is empty."""
        with self._file.open("r+b") as stream:
            stream.write(self._header())

    def _header(self) -> bytes:
        magic = np.lib.format.magic(1, 0)
        size = _HEADER_BYTES - len(magic) - 2
        text = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': ({self.count},), }}"
        return magic + struct.pack("<H", size) + (text.ljust(size - 1) + "\n").encode("latin1")
