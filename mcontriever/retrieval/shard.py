"""One block of a corpus becomes one artifact: its vectors, its passages, and the hashes of their ids.

The folder bears the hash of the block and of all else that decides what is in it, so that a shard made before, by this
run or by one that was killed, is found again, and one of another text or another encoder never is. What is in it does
not depend on the shards around it, so it has the same bytes whoever makes it and after whatever.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import workers
from ..artifact import Draft, writing
from ..corpus.formats import Passage
from ..corpus.passages import Block
from ..corpus.readers import BadLine
from ..corpus.report import BAD_LINES, BadLines
from ..errors import ArtifactError, DataError
from .rounding import TYPES, relative_errors, restored, rounded
from .store import PassageWriter
from .unique import IDS, hashed_ids

if TYPE_CHECKING:
    from ..encoder import Encoder

SHARD = "vector shard"
VECTORS, SCALES = "vectors.npy", "scales.npy"
FORMAT = 1  # a new one makes shards of old versions strangers


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done to every block: by which encoder, computing how, stored how."""

    encoder: str
    precision: str
    stored: str
    format: int = FORMAT


def name_of(number: int, block: Block, treatment: Treatment) -> str:
    """The name of the folder that the block's shard lies in until all are done."""
    facts = json.dumps([block.digest, asdict(treatment)], sort_keys=True)
    return f"{number:06}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"


def same_number(folder: Path, name: str) -> Iterator[Path]:
    """Shards lying there of the same block in another state."""
    return (path for path in folder.glob(f"{name.partition('-')[0]}-*") if path.name != name and path.is_dir())


def make_shard(
    path: Path, block: Block, encoder: Encoder, treatment: Treatment, *, batch_tokens: int | None, strict: bool
) -> dict[str, Any]:
    """Write the artifact and return its `meta`; with `strict` the first bad line is an error."""
    try:
        with writing(path, SHARD) as draft:
            bad = BadLines(draft.folder / BAD_LINES, strict=strict, folder=block.file.parent)
            lines, passages = _parsed(block, bad)
            before = encoder.truncated
            chunks = (rows for _, rows in encode_chunks(encoder, passages, batch_tokens))
            fill(draft, passages, _ticking(chunks), encoder.contract.dimension, treatment.stored, lines)
            draft.meta |= {
                "made_by": asdict(treatment),
                "file": block.name,
                "first_line": block.first_line,
                "truncated": encoder.truncated - before,
                "bad": bad.count,
                "first_bad": bad.first,
            }
    except ArtifactError:  # a worker of a run that was killed a moment ago may have been faster
        if (found := workers.finished(path, SHARD)) is None:
            raise
        return found
    return draft.meta


def fill(
    draft: Draft,
    passages: Sequence[Passage],
    chunks: Iterable[NDArray[np.float32]],
    dimension: int,
    stored: str,
    lines: Sequence[int] | None = None,
) -> None:
    """Put passages and their vectors, given some rows at a time, into a draft; `lines` count from the block's first."""
    writer = PassageWriter(draft.folder)
    for passage in passages:
        writer.write(passage)
    writer.close()
    ids = [passage.id for passage in passages]
    _save(draft.folder / IDS, hashed_ids(ids, range(len(ids)) if lines is None else lines))
    scales, worst, total, done = [], 0.0, 0.0, 0
    # Written in order, not through a memory map: on a full disk a map kills the process, a write is an error.
    with (draft.folder / VECTORS).open("wb") as stream:
        header = {"descr": TYPES[stored].str, "fortran_order": False, "shape": (len(passages), dimension)}
        np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
        for rows in chunks:
            kept, scale = rounded(rows, stored)
            stream.write(np.ascontiguousarray(kept).tobytes())
            if scale is not None:
                scales.append(scale)
            if stored != "fp32":
                errors = relative_errors(rows, restored(kept, stored, scale))
                if not np.isfinite(errors).all():
                    large = ids[done + int(np.argmin(np.isfinite(errors)))]
                    raise ArtifactError(f"the vector of passage {large!r} is too large for {stored}; take --dtype bf16")
                worst, total = max(worst, float(errors.max(initial=0))), total + float(errors.sum())
            done += len(rows)
    if done != len(passages):
        raise ArtifactError(f"the encoder gave {done} vectors for {len(passages)} passages")
    if stored == "int8":
        _save(draft.folder / SCALES, np.concatenate(scales) if scales else np.zeros(0, dtype="<f4"))
    read = Counter(passage.language for passage in passages)
    draft.meta |= {
        "count": len(passages),
        "dimension": dimension,
        "dtype": stored,
        "rounding": {"largest": worst, "sum": total},
        "read": dict(sorted(read.items())),
    }


def encode_chunks(
    encoder: Encoder, passages: Iterable[Passage], batch_tokens: int | None = None
) -> Iterator[tuple[list[Passage], NDArray[np.float32]]]:
    """Passages and their vectors (B, D), some at a time, in order; vectors that are not finite are refused."""

    def text(passage: Passage) -> str:
        return encoder.contract.passage_text(passage.text, passage.title)

    limit = encoder.contract.passage_max_length
    for chunk, rows in encoder.stream(passages, text=text, max_length=limit, batch_tokens=batch_tokens):
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad = chunk[int(np.argmin(finite))].id
            raise ArtifactError(f"the encoder's vector for passage {bad!r} is not finite; is the checkpoint damaged?")
        yield chunk, rows


def _parsed(block: Block, bad: BadLines) -> tuple[list[int], list[Passage]]:
    """Lines, counted from the block's first, and their passages."""
    from ..encoder.texts import is_visible

    known: dict[str, int] = {}
    lines, passages = [], []
    for line, item in block.items:
        if isinstance(item, Passage) and not (is_visible(item.title) or is_visible(item.text)):
            item = BadLine(f"{block.name}:{line}", "the passage has neither title nor text that can be seen")
        if isinstance(item, BadLine):
            bad.take(item)
            continue
        if (first := known.setdefault(item.id, line)) != line:
            raise same_id(item.id, f"{block.file}:{first}", f"{block.file}:{line}")
        lines.append(line - block.first_line)
        passages.append(item)
    return lines, passages


def same_id(name: str, first: str, second: str) -> DataError:
    """The error for two passages of one id; what helps costs the embedding of one shard and not of all after it."""
    return DataError(
        f"{second}: the passage id {name!r} occurs already at {first}; ids must differ. Leave one of the lines empty "
        "(removed, it would move all after it into other shards), and run it again"
    )


def _ticking(chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for rows in chunks:
        yield rows
        workers.tick(len(rows))


def _save(path: Path, array: NDArray[Any]) -> None:
    np.save(path, array, allow_pickle=False)
