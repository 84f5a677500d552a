"""The sharded momentum encoder against the whole one: the same numbers, a W-th of them on each rank.

Ranks are threads here, whose gather meets at a barrier; real processes run in tests/distributed.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mcontriever.objectives import MomentumEncoder, ShardedMomentumEncoder
from mcontriever.objectives.sharded import part


class Tiny(nn.Module):
    """As an encoder is built: embeddings, a list of layers, a weight of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(7, 5)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(1))

    def forward(self, ids):
        hidden = self.words(ids) + self.shift
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def on_ranks(world, work):
    """`work(rank, gather)` on as many threads as ranks; what each gives back."""
    barrier, board = threading.Barrier(world, timeout=20), [None] * world

    def run(rank):
        def gather(own):
            board[rank] = own
            barrier.wait()
            everyone = torch.cat(board)
            barrier.wait()
            return everyone

        return work(rank, gather)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


@given(count=st.integers(0, 40), world=st.integers(1, 9))
def test_parts_are_as_long_as_each_other_and_together_are_the_whole(count, world):
    whole = torch.arange(1.0, count + 1)
    parts = [part(whole, rank, world) for rank in range(world)]
    assert len({len(own) for own in parts}) == 1
    joined = torch.cat(parts)
    assert torch.equal(joined[:count], whole)
    assert not joined[count:].any()


@settings(max_examples=8, deadline=None)
@given(world=st.integers(1, 5), steps=st.integers(1, 3))
def test_many_ranks_give_what_one_whole_encoder_gives_bit_for_bit(world, steps):
    whole, ids = MomentumEncoder(Tiny(), 0.9), torch.arange(7)
    queries = [Tiny() for _ in range(world)]  # not in the threads, which share a generator

    def followed(rank, gather):
        query = queries[rank]
        keys = ShardedMomentumEncoder(query, 0.9, rank=rank, world=world, gather=gather)
        outputs = []
        with torch.no_grad():
            for step in range(steps):
                for weight in query.parameters():
                    weight.add_(step + 1.0)
                keys.update({name: part(weight, rank, world) for name, weight in query.named_parameters()})
                outputs.append(keys.module(ids))
        return outputs, keys.state_dict()

    ranks = on_ranks(world, followed)
    query = Tiny()
    for step in range(steps):
        with torch.no_grad():
            for weight in query.parameters():
                weight.add_(step + 1.0)
            whole.update(dict(query.named_parameters()))
            expected = whole.module(ids)
        assert all(torch.equal(outputs[step], expected) for outputs, _ in ranks)
    states = [state for _, state in ranks]
    assert all(torch.equal(states[0][name], value) for name, value in whole.state_dict().items())
    assert states[1:] == [{}] * (world - 1), "rank 0 alone takes the whole"


def test_a_rank_holds_its_share_and_never_more_than_a_layer_of_the_others():
    world = 3
    total = sum(weight.numel() for weight in Tiny().parameters())
    largest = sum(weight.numel() for weight in Tiny().layers[0].parameters())

    def held(rank, gather):
        keys = ShardedMomentumEncoder(Tiny(), 0.9, rank=rank, world=world, gather=gather)
        before = keys.held()
        with torch.no_grad():
            keys.module(torch.arange(7))
        return before, keys.held(), keys.most_gathered

    for before, after, gathered in on_ranks(world, held):
        assert before == after < total / world + len(list(Tiny().parameters()))
        assert gathered <= largest + world * 4 < total


def test_a_forward_pass_that_fails_lets_go_of_its_layer():
    keys = ShardedMomentumEncoder(Tiny(), 0.9, rank=0, world=1, gather=lambda own: own)
    before = keys.held()
    with pytest.raises(IndexError), torch.no_grad():
        keys.module(torch.tensor([99]))
    assert keys.held() == before


def test_a_whole_state_is_spread_and_comes_back():
    world, saved = 2, MomentumEncoder(Tiny(), 0.9).state_dict()
    saved = {name: value + 1 for name, value in saved.items()}

    def taken(rank, gather):
        keys = ShardedMomentumEncoder(Tiny(), 0.9, rank=rank, world=world, gather=gather)
        keys.load_state_dict(saved)
        return keys.state_dict()

    first, second = on_ranks(world, taken)
    assert all(torch.equal(first[name], value) for name, value in saved.items())
    assert second == {}


def test_the_encoder_whose_copy_it_is_stays_untouched():
    encoder = Tiny().train()
    keys = ShardedMomentumEncoder(encoder, 0.9, rank=0, world=1, gather=lambda own: own)
    assert encoder.training
    assert all(weight.numel() and weight.requires_grad for weight in encoder.parameters())
    assert not keys.module.training
    assert not any(weight.requires_grad for weight in keys.module.parameters())
