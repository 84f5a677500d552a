"""Ids that occur twice are found whatever shard they are in, against a plain set."""

import random

import numpy as np
import pytest

from mcontriever.retrieval import unique


def write(folder, shards):
    files = []
    for number, ids in enumerate(shards):
        files.append(folder / f"{number}.npy")
        np.save(files[-1], unique.hashed_ids(ids, range(0, 2 * len(ids), 2)))
    return files


@pytest.mark.parametrize("at_once", [1, 50, 1 << 21])
def test_against_a_plain_count(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(unique, "_AT_ONCE", at_once)
    chosen = random.Random(1)
    shards = [[str(chosen.randrange(400)) for _ in range(size)] for size in (40, 0, 70, 1, 55)]
    places = {}
    for shard, ids in enumerate(shards):
        for row, name in enumerate(ids):
            places.setdefault(name, []).append((shard, row, 2 * row))
    found = unique.same_hashes(write(tmp_path, shards), sum(map(len, shards)))
    assert sorted(map(sorted, found)) == sorted(each for each in places.values() if len(each) > 1)
    assert len(found) > 5


def test_none_twice(tmp_path):
    assert unique.same_hashes(write(tmp_path, [["a", "b"], ["c"], []]), 3) == []
    assert unique.same_hashes([], 0) == []


def test_the_largest_and_the_smallest_hash_are_compared_too(tmp_path):
    array = np.zeros(2, dtype=unique.HASHED)
    array["id"] = [0, (1 << 64) - 1]
    for name in ("0.npy", "1.npy"):
        np.save(tmp_path / name, array)
    assert len(unique.same_hashes([tmp_path / "0.npy", tmp_path / "1.npy"], 4)) == 2
