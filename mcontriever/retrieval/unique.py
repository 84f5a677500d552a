"""Whether any two of a hundred million passages have the same id, without a set of all ids in memory.

Every shard keeps hashes of its ids in order. Joining takes from all shards the hashes of one range at a time and looks
for neighbours that are equal; only then are ids themselves looked at, as different ids may have one hash.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDS = "ids.npy"
HASHED = np.dtype([("id", "<u8"), ("row", "<u4"), ("line", "<u4")])
_HEADER_ONLY = 128  # bytes of an .npy file that holds nothing
_AT_ONCE = 1 << 21  # hashes compared at a time, about


def hashed_ids(ids: Sequence[str], lines: Iterable[int]) -> NDArray[Any]:
    """(N,) `HASHED`, by hash: of each row's id, and its line counted from the shard's first."""
    found = np.zeros(len(ids), dtype=HASHED)
    digests = b"".join(hashlib.blake2b(each.encode(), digest_size=8).digest() for each in ids)
    found["id"] = np.frombuffer(digests, dtype="<u8")
    found["row"] = np.arange(len(ids))
    found["line"] = np.fromiter(lines, dtype="<u4", count=len(ids))
    return np.sort(found, order=("id", "row"))


def same_hashes(files: Sequence[Path], count: int) -> list[list[tuple[int, int, int]]]:
    """Groups of (shard, row, line) whose ids have one hash; `count` is how many ids there are in all."""
    ranges = max(1, -(-count // _AT_ONCE))
    step = -(-(1 << 64) // ranges)
    places = [0] * len(files)
    groups = []
    for number in range(ranges):
        end = (number + 1) * step
        parts = []
        for shard, file in enumerate(files):
            array = _opened(file)  # anew each time: of a large corpus there are more shards than files may be open
            # not searchsorted, which would copy all hashes out of the file for every range
            stop = bisect.bisect_left(array["id"], end, lo=places[shard])
            part = np.empty(stop - places[shard], dtype=[*HASHED.descr, ("shard", "<u4")])
            for name in HASHED.names or ():
                part[name] = array[name][places[shard] : stop]
            part["shard"] = shard
            parts.append(part)
            places[shard] = stop
        groups += _equal(np.concatenate(parts)) if parts else []
    return groups


def _opened(file: Path) -> NDArray[Any]:
    if file.stat().st_size <= _HEADER_ONLY:
        return np.zeros(0, dtype=HASHED)  # an empty array cannot be mapped
    array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _equal(part: NDArray[Any]) -> list[list[tuple[int, int, int]]]:
    part = part[np.argsort(part["id"], kind="stable")]
    again = np.flatnonzero(part["id"][1:] == part["id"][:-1]) + 1
    groups: list[list[tuple[int, int, int]]] = []
    for place in again:
        if not groups or groups[-1][-1] != _where(part[place - 1]):
            groups.append([_where(part[place - 1])])
        groups[-1].append(_where(part[place]))
    return groups


def _where(entry: Any) -> tuple[int, int, int]:
    return int(entry["shard"]), int(entry["row"]), int(entry["line"])
