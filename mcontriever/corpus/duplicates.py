"""Texts that are there twice, the same to the letter or nearly so, found with little memory however many there are.

A crawl repeats itself: two crops of one page met under two addresses are no evidence of meaning, and a key in the queue
that is the query's own text is a wrong negative. Near-duplicates are found by MinHash (rensa): texts are compared as
sets of character 5-grams, folded in case and white space, because those need no words and so serve Thai and Chinese
as they serve English. Documents that agree in a band of their signatures meet; those that agree in enough of the whole
signature, which estimates the Jaccard similarity of the sets, are near-duplicates.

N documents, P values a signature.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import require

_SHINGLE = 5  # characters
_SEED = 42
_MISSED = 0.01  # of the pairs right at the threshold, at most this share meets in no band
_ROWS = 2**15  # of the signatures, in memory at once
_SORTED = 2**22  # keys, in memory at once
_ROUNDS = 256  # so many that meet are looked at as firsts; what is left over then is counted
_RECORD = np.dtype([("key", np.uint64), ("row", np.int64)])

Keys = npt.NDArray[np.uint64]
Table = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def exact_key(text: str) -> bytes:
    """16 bytes that stand for a text with its white space collapsed; case and punctuation count."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


class Signatures:
    """MinHash signatures of P = `permutations` values each; the same text gives the same signature everywhere."""

    def __init__(self, permutations: int = 128) -> None:
        self.permutations = permutations
        self._make = require("rensa", "corpus", "finding near-duplicates").RMinHash.digest_matrix_from_flat_token_hashes

    def of(self, text: str) -> npt.NDArray[np.uint32]:
        """One text's signature."""
        signature: npt.NDArray[np.uint32] = self.of_many([text])[0]
        return signature  # (P,)

    def of_many(self, texts: Sequence[str]) -> npt.NDArray[np.uint32]:
        """A signature for each text; faster than one by one."""
        hashes = [_shingle_hashes(text) for text in texts]
        ends = np.cumsum([0, *map(len, hashes)], dtype=np.uint64)
        rows = self._make(np.concatenate([*hashes, np.empty(0, np.uint64)]), ends, self.permutations, _SEED).to_rows()
        return np.array(rows, np.uint32).reshape(len(texts), self.permutations)  # (N, P)


class Found(NamedTuple):
    """(N,) which documents repeat an earlier one, and (N,) which stay without having met all they might repeat."""

    repeated: Flags
    uncompared: Flags


def duplicates(
    exact: Keys | None,
    signatures: npt.NDArray[np.uint32] | None,
    threshold: float,
    *,
    scratch: Path | None = None,
) -> Found:
    """Which documents repeat an earlier one: the first of a cluster stays.

    exact (N, 2) is `exact_key` as two numbers, signatures (N, P) commonly a memory map; either may be left out. Memory
    holds 2N bytes and about `_SORTED` keys; what is more lies in a folder in `scratch` meanwhile.
    """
    tables = [table for table in (exact, signatures) if table is not None]
    dropped = np.zeros(len(tables[0]) if tables else 0, np.bool_)  # (N,)
    uncompared = np.zeros_like(dropped)
    if exact is not None:
        _drop(dropped, uncompared, exact, lambda rows: rows[:, 0], 1.0, scratch)
    if signatures is not None:
        for band in _bands(signatures.shape[1], threshold):
            _drop(dropped, uncompared, signatures, partial(_band_keys, band), threshold, scratch)
    return Found(dropped, uncompared & ~dropped)


def _shingle_hashes(text: str) -> Keys:
    codes = np.frombuffer(" ".join(text.casefold().split()).encode("utf-32-le"), np.uint32)
    codes = np.pad(codes, (0, max(0, _SHINGLE - len(codes))))  # a text shorter than a shingle is one
    return _mix(np.lib.stride_tricks.sliding_window_view(codes, _SHINGLE))


def _band_keys(band: slice, rows: Table) -> Keys:
    return _mix(rows[:, band])


def _mix(columns: Table) -> Keys:
    """One number for each row; equal rows give equal numbers."""
    mixed = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _bands(permutations: int, threshold: float) -> list[slice]:
    """Bands as wide, so with as few chance meetings, as `_MISSED` allows."""
    width = 1
    for wider in range(2, permutations + 1):
        if (1 - threshold**wider) ** (permutations // wider) <= _MISSED:
            width = wider
    return [slice(start, start + width) for start in range(0, permutations - width + 1, width)]


def _drop(
    dropped: Flags,
    uncompared: Flags,
    table: Table,
    keys_of: Callable[[Table], Keys],
    least: float,
    scratch: Path | None,
) -> None:
    """Among documents of equal key, drop what agrees with an earlier one in a share of at least `least`.

    All groups advance together: in each round the first of every group stays and the others are compared with it.
    """
    for keys, rows in _sorted_keys(dropped, table, keys_of, scratch):
        for round_ in range(_ROUNDS + 1):
            first = np.r_[True, keys[1:] != keys[:-1]][: len(keys)]
            if first.all():
                break
            if round_ == _ROUNDS:  # more texts that meet without being alike are left to the other bands
                uncompared[rows[~first]] = True
                break
            leaders = rows[first][np.cumsum(first) - 1][~first]
            keys, rows = keys[~first], rows[~first]
            alike = _agree(table, leaders, rows, least)
            dropped[rows[alike]] = True
            keys, rows = keys[~alike], rows[~alike]


def _agree(table: Table, left: Rows, right: Rows, least: float) -> Flags:
    blocks = [slice(start, start + _ROWS) for start in range(0, len(left), _ROWS)]
    agreed = [(table[left[block]] == table[right[block]]).mean(axis=1) >= least for block in blocks]
    return np.concatenate(agreed)


def _sorted_keys(
    dropped: Flags, table: Table, keys_of: Callable[[Table], Keys], scratch: Path | None
) -> Iterator[tuple[Keys, Rows]]:
    """Keys and rows of what is not dropped yet, by key and then row, in parts that share no key."""
    bits = max(0, math.ceil(math.log2(max(1, len(table)) / _SORTED)))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="duplicates-") as folder:
        files = [Path(folder, str(part)) for part in range(2**bits)]
        for file in files:
            file.touch()
        for start in range(0, len(table), _ROWS):
            rows = start + np.flatnonzero(~dropped[start : start + _ROWS])
            keys = keys_of(table[rows])
            record = np.empty(len(rows), _RECORD)
            record["key"], record["row"] = keys, rows
            parts = (keys >> np.uint64(64 - bits)) if bits else np.zeros(len(keys), np.uint64)
            for part in np.unique(parts):
                with files[int(part)].open("ab") as stream:
                    record[parts == part].tofile(stream)
        for file in files:
            record = np.fromfile(file, _RECORD)
            record = record[np.argsort(record["key"], kind="stable")]  # rows come in order, and stay so
            yield record["key"], record["row"]
