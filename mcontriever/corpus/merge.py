"""The pieces of one language joined in their order, without duplicates.

What grows with the corpus stays on disk, tokens and facts are copied block by block; memory holds four bytes
a document.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import workers
from ..artifact import writing
from .duplicates import duplicates
from .encode import load_piece
from .shards import GrowingArray

KIND = "corpus language"
_BLOCK_DOCUMENTS = 4096


@dataclass(frozen=True, kw_only=True)
class LanguageTask:
    """One language: the pieces that hold some of it, in order, and which duplicates go."""

    language: str
    pieces: tuple[str, ...]
    vocab_size: int
    exact: bool
    near: float
    folder: str

    @property
    def out(self) -> Path:
        """The artifact's folder."""
        facts = asdict(self) | {"pieces": [Path(piece).name for piece in self.pieces]}
        del facts["folder"]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Path(self.folder, f"language-{name}")


def merge_language(task: LanguageTask) -> dict[str, Any]:
    """Make the artifact unless it is there and whole; returns its `meta`: what was kept and what was a duplicate."""
    if (found := workers.finished(task.out, KIND)) is not None:
        return found
    totals = dict.fromkeys(("documents", "tokens", "words", "characters"), 0)
    with writing(task.out, KIND) as draft:
        exact, repeated, uncompared = _duplicates(task, draft.folder)
        types = {
            "tokens": np.min_scalar_type(task.vocab_size - 1),
            "offsets": np.dtype(np.int64),
            "articles": np.dtype(np.uint64),
            "titles": np.dtype(np.uint32),
        }
        any_title = False
        with contextlib.ExitStack() as opened:
            tokens, offsets, articles, titles = (
                opened.enter_context(contextlib.closing(GrowingArray(draft.folder / f"{name}.npy", dtype)))
                for name, dtype in types.items()
            )
            offsets.append(np.zeros(1, dtype=np.int64))
            done = 0
            for span, facts in _blocks(task):
                keep = ~repeated[done : done + len(facts)]
                done += len(facts)
                kept = facts[keep]
                offsets.append(tokens.count + np.cumsum(kept["tokens"].astype(np.int64)))
                tokens.append(span[np.repeat(keep, facts["tokens"].astype(np.int64))])
                articles.append(kept["article"])
                titles.append(kept["title"])
                any_title |= bool(kept["title"].any())
                for name in ("tokens", "words", "characters"):
                    totals[name] += int(kept[name].sum())
                workers.tick(len(facts))
        if not any_title:  # text without titles makes the shards it always made
            (draft.folder / "titles.npy").unlink()
        totals["documents"] = articles.count
        draft.meta |= totals | {
            "exact_duplicates": int(exact.sum()),
            "near_duplicates": int((repeated & ~exact).sum()),
            "near_uncompared": uncompared,
        }
    return draft.meta


def _duplicates(task: LanguageTask, folder: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """(documents,) which repeat an earlier one to the letter, and which do so or nearly so.

    Also how many stay though they were not compared with all that they might nearly repeat.
    """
    loaded = (load_piece(piece, task.language) for piece in task.pieces)
    count, scratch = 0, {name: folder / f"{name}.scratch" for name in ("keys", "signatures")}
    with contextlib.ExitStack() as opened:
        keys, signatures = (
            opened.enter_context(contextlib.closing(GrowingArray(scratch[name], dtype)))
            for name, dtype in (("keys", np.uint64), ("signatures", np.uint32))
        )
        for _, documents, signed in loaded:
            count += len(documents)
            for start in range(0, len(documents), _BLOCK_DOCUMENTS):
                block = slice(start, start + _BLOCK_DOCUMENTS)
                if task.exact:
                    keys.append(documents[block]["key"].reshape(-1))
                if task.near and signed is not None:
                    signatures.append(signed[block].reshape(-1))
    keys_of = _rows(scratch["keys"], count) if task.exact else None
    exact = duplicates(keys_of, None, 1.0, scratch=folder).repeated if task.exact else np.zeros(count, dtype=np.bool_)
    near, uncompared = exact, 0
    if task.near:
        found = duplicates(keys_of, _rows(scratch["signatures"], count), task.near, scratch=folder)
        near, uncompared = found.repeated, int(found.uncompared.sum())
    for file in scratch.values():
        file.unlink()
    return exact, near, uncompared


def _rows(file: Path, count: int) -> NDArray[Any]:
    array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array.reshape(count, -1)


def _blocks(task: LanguageTask) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Tokens of some documents, one after another, and the documents' facts."""
    for piece in task.pieces:
        tokens, documents, _ = load_piece(piece, task.language)
        place = 0
        for start in range(0, len(documents), _BLOCK_DOCUMENTS):
            facts = np.array(documents[start : start + _BLOCK_DOCUMENTS])
            size = int(facts["tokens"].sum())
            yield np.array(tokens[place : place + size]), facts
            place += size
