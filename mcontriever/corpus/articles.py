"""Numbers for the articles that documents are language versions of, counted over all languages.

There may be as many articles as documents, so none of this is held in memory: their hashes are parted into buckets, and
what is known of each document lies in two arrays on disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .shards import NO_ARTICLE, GrowingArray

_BLOCK = 2**20
_BUCKET = 2**21  # hashes looked at together


def number_articles(hashes: Mapping[str, Path], out: Path, scratch: Path) -> int:
    """Write `articles.<language>.npy` into `out`, numbered in order of first appearance; returns how many there are.

    `hashes` are the files of each language's article hashes. An article's number is how many articles came first
    before its own first document; positions count documents over all languages.
    """
    arrays = {language: np.load(file, mmap_mode="r", allow_pickle=False) for language, file in hashes.items()}
    total = sum(map(len, arrays.values()))
    buckets = _part(arrays.values(), max(1, -(-total // _BUCKET)), scratch)
    # (documents,) the place of the first document of the same article, and how many articles began up to a place
    firsts, begun = (_mapped(scratch / name, total if buckets else 0) for name in ("firsts", "begun"))
    for bucket in buckets:
        hashed, places = np.fromfile(bucket, dtype=np.uint64).reshape(-1, 2).T
        _, first, same = np.unique(hashed, return_index=True, return_inverse=True)
        firsts[places] = places[first][same]
    count = start = 0
    for array in arrays.values() if buckets else ():
        for block in _steps(len(array)):
            place = slice(start + block.start, start + block.stop)
            is_first = (array[block] != 0) & (firsts[place] == np.arange(place.start, place.stop))
            begun[place] = count + np.cumsum(is_first)
            count = int(begun[place.stop - 1])
        start += len(array)
    start = 0
    for language, array in arrays.items():
        with contextlib.closing(GrowingArray(out / f"articles.{language}.npy", np.int64)) as numbers:
            for block in _steps(len(array)):
                found = np.full(block.stop - block.start, NO_ARTICLE)
                if buckets:
                    has = array[block] != 0
                    found[has] = begun[firsts[start + block.start : start + block.stop][has]] - 1
                numbers.append(found)
        start += len(array)
    return count


def _part(arrays: Iterable[NDArray[np.uint64]], count: int, scratch: Path) -> list[Path]:
    """Files of (hash, place) pairs, parted by hash, places rising; none if no document has an article."""
    buckets: dict[int, Path] = {}
    start = 0
    for array in arrays:
        for block in _steps(len(array)):
            hashed = np.array(array[block])
            pairs = np.stack([hashed, np.arange(start + block.start, start + block.stop, dtype=np.uint64)], axis=1)
            pairs = pairs[hashed != 0]
            numbers = (pairs[:, 0] >> np.uint64(1)) % np.uint64(count)
            for number in np.unique(numbers).tolist():
                file = buckets.setdefault(number, scratch / f"bucket-{number}")
                with file.open("ab") as stream:
                    stream.write(np.ascontiguousarray(pairs[numbers == number]).data)
        start += len(array)
    return list(buckets.values())


def _steps(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


def _mapped(file: Path, count: int) -> NDArray[np.int64]:
    """Numbers on disk to be written in any order. Room is made first: a disk full under a mapping kills the process."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    with file.open("w+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, count * 8)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from error
    return np.memmap(file, dtype=np.int64, mode="r+", shape=(count,))
