"""Passages to vectors: `mcontriever embed`. Streams the corpus in chunks, so memory does not grow with it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..artifact import is_artifact, open_artifact, refuse_other, refuse_overlap, writing
from ..corpus.formats import Passage, read_passages
from ..errors import ArtifactError, DataError
from ..progress import bar, track
from ..settings import in_range
from .store import PassageWriter, count_and_hash
from .vectors import KIND, VECTORS, describe_encoder

if TYPE_CHECKING:
    from ..encoder import Encoder

CHUNK = 256  # at least so many passages are held, embedded and reported at a time; packing wastes nothing on padding


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Embed the passages of a corpus with a checkpoint."""

    checkpoint: str
    """checkpoint folder, or the name of a model on the Hugging Face hub"""
    corpus: str
    """folder with corpus.<language>.jsonl[.gz] files, or one such file"""
    out: str
    """folder to write"""
    batch_tokens: int = 4096
    """tokens that go through the encoder at a time"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster where the hardware knows it; vectors are stored as float32 either way"""
    device: str = ""
    """cpu, cuda, cuda:1 ...; by default a GPU where there is one"""
    overwrite: bool = False
    """replace OUT if it holds vectors made from something else"""

    def __post_init__(self) -> None:
        in_range("batch_tokens", self.batch_tokens, 1, 10_000_000)


def embed(settings: EmbedSettings) -> Path:
    """Write a `vectors` artifact. One already made from the same passages by the same encoder is left as it is."""
    from ..encoder import load

    out = Path(settings.out)
    refuse_overlap(out, [settings.checkpoint, settings.corpus])
    refuse_other(out, KIND)
    count, passages_hash = count_and_hash(track(read_passages(settings.corpus), "Checking", "passages"))
    if not count:
        raise DataError(f"{settings.corpus}: no passages; expected lines like {{'_id', 'title', 'text'}}")
    encoder = load(settings.checkpoint, device=settings.device or None, precision=settings.precision)
    meta = {
        "count": count,
        "passages": passages_hash,
        "precision": settings.precision,
        "encoder": describe_encoder(encoder, settings.checkpoint),
    }
    if same_inputs(out, KIND, meta) and not settings.overwrite:
        sys.stderr.write(f"{out}: made from the same passages by the same encoder already; kept\n")
        return out
    refuse_existing(out, settings.overwrite)
    with writing(out, KIND, overwrite=settings.overwrite) as draft:
        draft.meta.update(meta)
        passages, done = PassageWriter(draft.folder), 0
        # Written in order, not through a memory map: on a full disk a map kills the process, a write is an error.
        with (draft.folder / VECTORS).open("wb") as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, encoder.contract.dimension)}
            np.lib.format.write_array_header_1_0(stream, header)
            for chunk, rows in embed_passages(encoder, read_passages(settings.corpus), count, settings.batch_tokens):
                stream.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
                for passage in chunk:
                    passages.write(passage)
                done += len(chunk)
        if done != count:
            raise DataError(f"{settings.corpus}: changed while it was read ({count} passages, then {done})")
        passages.close()
    return out


def embed_passages(
    encoder: Encoder, passages: Iterable[Passage], count: int, batch_tokens: int = 4096
) -> Iterator[tuple[list[Passage], np.ndarray]]:
    """Passages and their vectors (B, D), a chunk at a time, with progress; vectors that are not finite are refused."""
    with bar("Embedding", count, "passages") as running:
        for chunk in _chunks(passages, max(CHUNK, batch_tokens // 16)):
            texts = [(passage.title, passage.text) for passage in chunk]
            rows = encoder.encode_passages(texts, batch_tokens=batch_tokens)
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                bad = chunk[int(np.argmin(finite))].id
                raise ArtifactError(
                    f"the encoder's vector for passage {bad!r} is not finite; is the checkpoint damaged?"
                )
            yield chunk, rows
            running.advance(len(chunk))


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
        raise ArtifactError(f"{path} exists already and was made from other inputs; give --overwrite, or another --out")


def _chunks(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    iterator = iter(passages)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
