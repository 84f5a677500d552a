"""The passages beside their vectors: one JSON line each and the byte offset of every line, read one at a time.

Row n of the vectors is line n; a search over millions of passages must not hold their text in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..artifact import Artifact
from ..corpus.formats import Passage
from ..corpus.shards import GrowingArray
from ..errors import ArtifactError

PASSAGES, LINES = "passages.jsonl", "lines.npy"


def line(passage: Passage) -> bytes:
    """A passage as it is stored."""
    fields = {"id": passage.id, "title": passage.title, "text": passage.text, "language": passage.language}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


class PassageWriter:
    """Appends passages to a draft's folder; `close` writes the offsets."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._offsets = folder, array("q", [0])
        self._stream: BinaryIO = (folder / PASSAGES).open("wb")

    def write(self, passage: Passage) -> None:
        """Append one."""
        self._offsets.append(self._offsets[-1] + self._stream.write(line(passage)))

    def close(self) -> None:
        """End the file and write where its lines begin."""
        self._stream.close()
        np.save(self._folder / LINES, np.asarray(self._offsets, dtype=np.int64), allow_pickle=False)


def copy_passages(stores: Iterable[PassageStore], folder: Path) -> None:
    """Put the passages of several stores, one after another, into a draft's folder as those of one."""
    offsets = GrowingArray(folder / LINES, np.int64)
    offsets.append(np.zeros(1, dtype=np.int64))
    size = 0
    with (folder / PASSAGES).open("wb") as stream:
        for store in stores:
            store.stream.seek(0)
            shutil.copyfileobj(store.stream, stream)
            offsets.append(store.offsets[1:] + size)
            size += int(store.offsets[-1])
    offsets.close()


class PassageStore:
    """Passages by row, from a verified artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self._path = artifact.file(PASSAGES)
        offsets = np.load(artifact.file(LINES), allow_pickle=False, mmap_mode="r")
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[-1] != self._path.stat().st_size:
            raise ArtifactError(f"{artifact.path}: {LINES} does not belong to its {PASSAGES}; write the folder again")
        self.offsets = offsets
        # Kept open: when a rebuild is renamed over this folder, the old offsets must go on reading the old text.
        self.stream = self._path.open("rb")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Passage:
        # A negative row would be a valid Python index and silently answer with the wrong passage.
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} passages")
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return _passage(os.pread(self.stream.fileno(), end - start, start))  # moves no position: safe in threads

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))


def _passage(data: bytes) -> Passage:
    return Passage(**json.loads(data))
