"""Packing: sequences end to end, and back."""

import numpy as np
import pytest
import torch

from mcontriever.pairs import Packed, PairBatch, pack


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
