"""The dense index: exact inner-product search, and the only file that imports faiss.

FAISS defaults to L2, pads short results with id -1 (a valid Python index), raises nothing on a NaN query and loads
four damaged files in five without a word. So the metric is always stated, everything is verified before it reads a
byte and checked after, and nothing padded leaves this file. Letters: N passages, Q queries, D dimensions, k results.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..artifact import Artifact, open_artifact, refuse_other, refuse_overlap, writing
from ..errors import ArtifactError, UsageError, require
from ..progress import bar
from .lexical import LexicalIndex
from .store import PassageStore, copy_passages
from .vectors import Rows, Vectors, refuse_existing, same_inputs

KIND = "index"
DENSE = "index.faiss"
_HEADER = struct.Struct("<4siqqqBiQ")  # magic, d, ntotal, two unused, trained, metric, number of floats
_BLOCK = 65536  # rows added at a time, so that a memory-mapped array is never held twice


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """Build a searchable index from embedded passages."""

    vectors: str
    """folder written by `mcontriever embed`"""
    out: str
    """folder to write"""
    kind: Literal["flat"] = "flat"
    """flat: exact search"""
    lexical: bool = True
    """also build a BM25 index of the same passages"""
    overwrite: bool = False
    """replace OUT if it holds an index made from something else"""


class DenseIndex:
    """Exact inner-product search over rows (N, D)."""

    def __init__(self, index: Any) -> None:
        self._faiss, self._index = _faiss(), index

    @classmethod
    def build(cls, vectors: np.ndarray | Rows) -> DenseIndex:
        """Index the rows (N, D), finite float32."""
        index = _faiss().IndexFlat(vectors.shape[1], _faiss().METRIC_INNER_PRODUCT)
        with bar("Indexing", len(vectors), "vectors") as running:
            for start in range(0, len(vectors), _BLOCK):
                block = np.ascontiguousarray(vectors[start : start + _BLOCK], dtype=np.float32)
                if not np.isfinite(block).all():
                    row = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                    raise ArtifactError(f"row {row} of the vectors is not finite; embed again")
                index.add(block)
                running.advance(len(block))
        return cls(index)

    @classmethod
    def load(cls, artifact: Artifact) -> DenseIndex:
        """Read from a verified artifact, after checking the file's own header against the manifest."""
        path, count, dimension = artifact.file(DENSE), artifact.meta["count"], artifact.meta["encoder"]["dimension"]
        faiss = _faiss()
        with path.open("rb") as stream:
            head = stream.read(_HEADER.size)
        floats = count * dimension
        if len(head) != _HEADER.size or path.stat().st_size != _HEADER.size + 4 * floats:
            raise ArtifactError(f"{path}: not a flat index of {count} x {dimension} floats; index again")
        magic, d, ntotal, _, _, trained, metric, size = _HEADER.unpack(head)
        wanted = (b"IxFI", dimension, count, 1, faiss.METRIC_INNER_PRODUCT, floats)
        if (magic, d, ntotal, trained, metric, size) != wanted:
            raise ArtifactError(f"{path}: its header is not that of {count} x {dimension} inner-product; index again")
        index = faiss.read_index(str(path))
        if (index.d, index.ntotal, index.metric_type) != (dimension, count, faiss.METRIC_INNER_PRODUCT):
            raise ArtifactError(f"{path}: FAISS read another index than its header says; index again")
        return cls(index)

    def save(self, path: Path) -> None:
        """Write into a draft's folder."""
        try:
            self._faiss.write_index(self._index, str(path))
        except RuntimeError as error:  # FAISS's only word for a full disk
            raise ArtifactError(f"{path}: could not be written: {error}") from error

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self._index.d)

    def search(self, vectors: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) and rows (Q, k) of the best passages, best first; `among` keeps to those rows.

        k must lie between 1 and the number of passages searched, so that no result is padding.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ArtifactError(f"queries of shape {vectors.shape} do not fit an index of dimension {self.dimension}")
        if not np.isfinite(vectors).all():
            raise ArtifactError("a query's vector is not finite; is the checkpoint damaged?")
        check_k(k, len(self) if among is None else len(among))
        # Below this threshold (nq*d) FAISS leaves BLAS alone, up to 20 times slower; it is global, so set every time.
        self._faiss.cvar.distance_compute_blas_threshold = 3 * self.dimension
        parameters = None
        if among is not None:
            selector = self._faiss.IDSelectorBatch(np.ascontiguousarray(among, dtype=np.int64))
            parameters = self._faiss.SearchParameters(sel=selector)
        scores, rows = self._index.search(vectors, k, params=parameters)
        if (rows < 0).any():
            raise ArtifactError(f"the index answered with fewer than {k} of its {len(self)} passages; index again")
        # FAISS leaves ties in whatever order its threads met them.
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def check_k(k: int, count: int) -> None:
    """Refuse a k that cannot be answered in full."""
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if k > count:
        raise UsageError(f"k is {k} but there are only {count} passages to search; give a k of at most {count}")


def build_index(settings: IndexSettings) -> Path:
    """Write an `index` artifact: FAISS file, passages, BM25. One made from the same vectors already is kept."""
    out = Path(settings.out)
    refuse_overlap(out, [settings.vectors])
    refuse_other(out, KIND)
    vectors = Vectors.open(settings.vectors)
    meta = {
        "kind": settings.kind,
        "metric": "inner product",
        "count": len(vectors),
        "lexical": settings.lexical,
        "vectors": vectors.artifact.fingerprint,
        "encoder": vectors.encoder,
    }
    if same_inputs(out, KIND, meta):
        sys.stderr.write(f"{out}: made from the same vectors already; kept\n")
        return out
    refuse_existing(out, settings.overwrite)
    with writing(out, KIND, overwrite=settings.overwrite) as draft:
        draft.meta.update(meta)
        DenseIndex.build(vectors.vectors).save(draft.folder / DENSE)
        copy_passages(vectors.passages.stores(), draft.folder)
        if settings.lexical:
            LexicalIndex.build(vectors.passages, len(vectors)).save(draft.folder)
    return out


def open_index(path: Path | str) -> tuple[Artifact, PassageStore]:
    """The verified artifact and its passages, their number checked; FAISS has read nothing yet."""
    artifact = open_artifact(path, KIND)
    passages = PassageStore(artifact)
    if len(passages) != artifact.meta["count"]:
        raise ArtifactError(f"{path}: holds {len(passages)} passages for {artifact.meta['count']} vectors; index again")
    return artifact, passages


def _faiss() -> Any:
    return require("faiss", "cpu", "dense search")


def faiss_build() -> str:
    """The installed FAISS in words: its version, what it was compiled for, and the GPUs it sees."""
    faiss = _faiss()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{faiss.__version__}, compiled with {faiss.get_compile_options().strip()}, sees {gpus} GPUs"
