"""Packing: sequences end to end, and back."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcontriever.errors import SettingsError
from mcontriever.pairs import Packed, PairBatch, pack
from mcontriever.pairs.packing import padding_share


def test_pack_wraps_cuts_and_lays_end_to_end():
    packed = pack([np.array([5, 6, 7]), np.array([], dtype=np.int32), np.arange(10, 20)], bos=0, eos=2, max_length=5)
    assert packed.ids.tolist() == [0, 5, 6, 7, 2, 0, 2, 0, 10, 11, 12, 2]
    assert packed.lengths.tolist() == [5, 2, 5]
    assert packed.cu_seqlens.tolist() == [0, 5, 7, 12]
    assert packed.ids.dtype == packed.lengths.dtype == packed.cu_seqlens.dtype == torch.int64
    assert len(packed) == 3
    assert [row.tolist() for row in packed.split()] == [[0, 5, 6, 7, 2], [0, 2], [0, 10, 11, 12, 2]]


def test_of_takes_sequences_as_they_are():
    packed = Packed.of([np.array([3], dtype=np.int32), np.array([4, 5], dtype=np.uint16)])
    assert (packed.ids.tolist(), packed.lengths.tolist()) == ([3, 4, 5], [1, 2])


@pytest.mark.parametrize("sequences", [[], [np.array([1]), np.array([])]])
def test_nothing_to_pack_is_an_error(sequences):
    with pytest.raises(ValueError, match="no empty one"):
        Packed.of(sequences)
    with pytest.raises(ValueError, match="room for bos and eos"):
        pack([np.array([1])], 0, 2, 1)


def test_a_batch_moves_and_counts_its_languages():
    one = pack([np.array([5]), np.array([6]), np.array([7])], 0, 2, 8)
    batch = PairBatch(one, one, torch.tensor([0, 1, 0]), torch.tensor([2, 0, 2]), ("ar", "en", "sw"))
    moved = batch.to("meta")
    assert {moved.query.ids.device.type, moved.passage.lengths.device.type, moved.group.device.type} == {"meta"}
    assert moved.language_counts() == {"ar": 1, "sw": 2}
    assert len(batch) == 3


def batch_of(query_lengths, passage_lengths):
    query, passage = (
        Packed(torch.arange(sum(lengths)), torch.tensor(lengths)) for lengths in (query_lengths, passage_lengths)
    )
    count = len(query_lengths)
    return PairBatch(query, passage, torch.arange(count), torch.arange(count) % 2, ("ar", "en"))


def tokens_of(batch):
    return int(batch.query.lengths.sum() + batch.passage.lengths.sum())


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=9), st.data())
@settings(max_examples=80, deadline=None)
def test_parts_are_contiguous_whole_and_as_even_as_can_be(lengths, data):
    whole = batch_of(*zip(*lengths, strict=True))
    parts = data.draw(st.integers(1, len(whole)))
    made = whole.cut(parts)
    assert len(made) == parts
    assert min(map(len, made)) >= 1
    for name in ("query", "passage"):
        assert torch.cat([getattr(part, name).ids for part in made]).equal(getattr(whole, name).ids)
        assert torch.cat([getattr(part, name).lengths for part in made]).equal(getattr(whole, name).lengths)
    assert torch.cat([part.group for part in made]).equal(whole.group)
    assert torch.cat([part.language for part in made]).equal(whole.language)
    sums = [sum(pair) for pair in lengths]
    every_way = combinations(range(1, len(sums)), parts - 1)
    best = min(max(sum(sums[a:b]) for a, b in pairwise([0, *way, len(sums)])) for way in every_way)
    assert max(map(tokens_of, made)) == best
    assert whole.parts_for(best) <= parts
    assert parts == 1 or best == max(sums) or whole.parts_for(best - 1) > parts


def test_a_pair_over_the_budget_is_an_error():
    whole = batch_of([3, 9], [4, 2])
    assert whole.parts_for(18) == 1
    assert whole.parts_for(11) == 2
    with pytest.raises(SettingsError, match="batch.tokens is 10, but a pair has 11 tokens"):
        whole.parts_for(10)
    for parts in (0, 3):
        with pytest.raises(ValueError, match="expected 1 to 2 parts"):
            whole.cut(parts)


def test_rows_are_a_part_of_the_batch():
    part = batch_of([3, 1, 2], [4, 2, 5]).rows(1, 3)
    assert [row.tolist() for row in part.query.split()] == [[3], [4, 5]]
    assert [row.tolist() for row in part.passage.split()] == [[4, 5], [6, 7, 8, 9, 10]]
    assert (part.group.tolist(), part.language.tolist()) == ([1, 2], [1, 0])
    assert part.language_counts() == {"ar": 1, "en": 1}


def test_lengths_are_known_without_asking_the_device():
    here = pack([np.array([5]), np.arange(6, 9)], 0, 2, 8)
    there = here.to("meta")  # a tensor there has no numbers to ask for
    assert here.known_lengths == there.known_lengths == (3, 5)
    both = Packed.joined(there, here.rows(1, 2).to("meta"))
    assert both.known_lengths == (3, 5, 5)
    assert (both.ids.shape, both.lengths.shape) == ((13,), (3,))
    assert [row.tolist() for row in Packed.joined(here, here.rows(1, 2)).split()] == [
        [0, 5, 2],
        [0, 6, 7, 8, 2],
        [0, 6, 7, 8, 2],
    ]


def test_share_of_padding():
    assert padding_share(torch.tensor([4, 4])) == 0
    assert padding_share(torch.tensor([1, 4, 3])) == pytest.approx(4 / 12)
