"""Embedded passages on disk: shards of vectors and of the passages they stand for, and the encoder that made them.

Vectors of two encoders can be compared without any error and without any sense, so everything that holds vectors
names its encoder, and everything that joins two of them compares the names. A shard is opened when a row of it is asked
for, and few stay open: of a hundred million passages there are more shards than files a process may have open.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import MANIFEST, Artifact, is_artifact, open_artifact, sha256
from ..corpus.formats import Passage
from ..errors import ArtifactError
from ..progress import track
from .rounding import TYPES, restored
from .shard import SCALES, SHARD, VECTORS
from .store import PassageStore

if TYPE_CHECKING:
    from ..encoder import Encoder

KIND = "vectors"
_OPEN = 64  # shards


def encoder_fingerprint(encoder: Encoder) -> str:
    """A hash of what decides the vectors: contract, tokenizer and weights, wherever the checkpoint lies."""
    digest = hashlib.sha256(json.dumps(asdict(encoder.contract), sort_keys=True, ensure_ascii=False).encode())
    digest.update(encoder.tokenizer.fingerprint.encode())
    weights = sorted(encoder.state_dict().items())
    for name, tensor in track(weights, "Hashing the encoder", "tensors", len(weights)):
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def describe_encoder(encoder: Encoder, checkpoint: str) -> dict[str, Any]:
    """What an artifact says of its encoder: the fingerprint decides, the path is a hint for finding it again."""
    local = Path(checkpoint)
    return {
        "fingerprint": encoder_fingerprint(encoder),
        "tokenizer": encoder.tokenizer.fingerprint,
        # absolute, or searching would work in one folder and not in the next
        "checkpoint": str(local.resolve()) if local.is_dir() else checkpoint,
        "similarity": encoder.contract.similarity,
        "dimension": encoder.contract.dimension,
    }


def check_encoder(path: Path, made_by: dict[str, Any], encoder: Encoder) -> None:
    """Refuse an encoder that is not the one that made the artifact at `path`."""
    if encoder_fingerprint(encoder) != made_by["fingerprint"]:
        raise ArtifactError(
            f"{path}: its vectors were made by another encoder (then at {made_by['checkpoint']}) than the one given; "
            "search with that one, or embed and index again with this one"
        )


def same_inputs(path: Path, kind: str, meta: dict[str, Any]) -> bool:
    """Whether a complete artifact with this `meta` lies there; where an encoder was found is not part of it."""

    def comparable(meta: dict[str, Any]) -> dict[str, Any]:
        encoder = {key: value for key, value in meta.get("encoder", {}).items() if key != "checkpoint"}
        return meta | {"encoder": encoder}

    if not is_artifact(path, kind):
        return False
    return comparable(open_artifact(path, kind, verify=True).meta) == comparable(meta)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Say at once, before any work, that something else lies at `path`."""
    if path.exists() and not overwrite:
        raise ArtifactError(
            f"{path} exists already and was made from other inputs or with other settings; give --overwrite, or "
            "another OUT"
        )


def folder_of(number: int) -> str:
    """The name of a shard's folder in the finished whole."""
    return f"{number:05}"


class Vectors:
    """An opened `vectors` artifact: row n of `.vectors` (N, D) is the passage `.passages[n]`."""

    def __init__(self, artifact: Artifact) -> None:
        self.path, self.artifact = artifact.path, artifact
        self.encoder: dict[str, Any] = artifact.meta["encoder"]
        self._opened: OrderedDict[int, _Shard] = OrderedDict()
        counts = artifact.meta["shards"]
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
        for number in range(len(counts)):  # each once, so that what does not fit is told now
            self.shard(number)
        self.vectors, self.passages = Rows(self), Passages(self)

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Vectors:
        """Open and verify."""
        return cls(open_artifact(path, KIND, verify=verify))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.encoder["dimension"])

    def place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and which of its rows that is."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def spans(self, start: int, stop: int) -> Iterator[tuple[_Shard, int, int]]:
        """Shards with the parts of them that rows `start` to `stop` are made of."""
        while start < stop:
            number, first = self.place(start)
            count = min(stop - start, int(self._starts[number + 1]) - start)
            yield self.shard(number), first, first + count
            start += count

    def shard(self, number: int) -> _Shard:
        """An open shard; those used longest ago are closed."""
        if number not in self._opened:
            self._opened[number] = self._open_shard(number)
            if len(self._opened) > _OPEN:
                self._opened.popitem(last=False)
        self._opened.move_to_end(number)
        return self._opened[number]

    def _open_shard(self, number: int) -> _Shard:
        name = folder_of(number)
        manifest = self.artifact.file(f"{name}/{MANIFEST}")
        # another embedding may have been renamed over this one since it was opened and verified
        if not manifest.is_file() or sha256(manifest) != self.artifact.files[f"{name}/{MANIFEST}"]["sha256"]:
            raise ArtifactError(f"{self.path}: was replaced while it was read; open it again")
        artifact = open_artifact(self.path / name, SHARD, verify=False)
        stored, count = self.artifact.meta["dtype"], int(self._starts[number + 1] - self._starts[number])
        passages = PassageStore(artifact)
        rows = _mapped(artifact.file(VECTORS), count)
        scales = _mapped(artifact.file(SCALES), count) if stored == "int8" else None
        expected = (count, self.dimension)
        if rows.shape != expected or rows.dtype != TYPES.get(stored) or len(passages) != count:
            found = f"{rows.dtype} {rows.shape} with {len(passages)} passages"
            raise ArtifactError(f"{artifact.path}: holds {found}, expected {stored} {expected}; embed again")
        if scales is not None and (scales.shape, scales.dtype) != ((count,), np.dtype("<f4")):
            raise ArtifactError(f"{artifact.path}: its {SCALES} does not belong to its {VECTORS}; embed again")
        return _Shard(rows, scales, passages, stored)


@dataclass(frozen=True)
class _Shard:
    rows: NDArray[Any]
    scales: NDArray[np.float32] | None
    passages: PassageStore
    stored: str

    def floats(self, key: slice | NDArray[Any]) -> NDArray[np.float32]:
        """Some rows as float32."""
        return restored(self.rows[key], self.stored, None if self.scales is None else self.scales[key])


class Rows:
    """The vectors of all shards as one array (N, D) of float32, to be read a part at a time."""

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self._vectors), self._vectors.dimension

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, key: int | slice | NDArray[Any]) -> NDArray[np.float32]:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            parts = [shard.floats(slice(*span)) for shard, *span in self._vectors.spans(start, stop)]
            return np.concatenate([np.empty((0, self.shape[1]), dtype=np.float32), *parts])
        asked = np.arange(len(self))[key] if isinstance(key, np.ndarray) and key.dtype == bool else np.asarray(key)
        rows = np.atleast_1d(np.where(asked < 0, asked + len(self), asked))
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"row {key} of {len(self)} vectors")
        found = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for place in np.argsort(rows, kind="stable"):  # shard after shard
            shard, row = self._vectors.place(int(rows[place]))
            found[place] = self._vectors.shard(shard).floats(slice(row, row + 1))[0]
        return found if asked.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)


class Passages:
    """The passages of all shards by row."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, row: int) -> Passage:
        # A negative row would be a valid Python index and silently answer with the wrong passage.
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} passages")
        shard, inside = self._vectors.place(row)
        return self._vectors.shard(shard).passages[inside]

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))

    def stores(self) -> Iterator[PassageStore]:
        """Shard after shard."""
        return (self._vectors.shard(number).passages for number in range(len(self._vectors.artifact.meta["shards"])))


def _mapped(file: Path, count: int) -> NDArray[Any]:
    # an empty array cannot be mapped
    array: NDArray[Any] = np.load(file, allow_pickle=False, mmap_mode="r" if count else None)
    return array
