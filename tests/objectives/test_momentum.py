"""The queue against a plain Python list, the average against its closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mcontriever.objectives import KeyQueue, MomentumEncoder


@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_queue_holds_the_last_keys_in_ring_order(size, batches):
    queue = KeyQueue(size, 1)
    ring, pointer, number = [None] * size, 0, 0
    for batch in batches:
        rows = list(range(number, number + batch))
        number += batch
        queue.enqueue(torch.tensor(rows, dtype=torch.float)[:, None], torch.tensor(rows))
        for row in rows:
            ring[pointer % size] = row
            pointer += 1
    expected = [KeyQueue.EMPTY if row is None else row for row in ring]
    assert queue.groups.tolist() == expected
    assert [int(key) for key, row in zip(queue.keys[:, 0], ring, strict=True) if row is not None] == [
        row for row in ring if row is not None
    ]
    assert queue.pointer == pointer % size


def test_queue_state_comes_back():
    queue, other = KeyQueue(4, 2), KeyQueue(4, 2)
    queue.enqueue(torch.randn(3, 2), torch.arange(3))
    other.load_state_dict({name: value.clone() for name, value in queue.state_dict().items()})
    extra = torch.randn(2, 2)
    for each in (queue, other):
        each.enqueue(extra, torch.arange(10, 12))
    assert torch.equal(queue.keys, other.keys)
    assert torch.equal(queue.groups, other.groups)
    assert queue.pointer == other.pointer


def test_average_follows_its_closed_form_where_bf16_would_stand_still():
    m, steps = 0.9995, 1000
    query = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        query.weight.fill_(1.0)
    keys = MomentumEncoder(query, m)
    with torch.no_grad():
        query.weight.fill_(1.5)
    for _ in range(steps):
        keys.update({"weight": query.weight.bfloat16()})  # an engine in bf16 feeds it bf16
    assert keys.module.weight.item() == pytest.approx(1.5 - 0.5 * m**steps, abs=1e-4)
    assert keys.module.weight.dtype == torch.float32


def test_parameters_meet_by_name_not_by_place():
    encoder = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    keys = MomentumEncoder(encoder, 0.0)
    keys.update({"b.weight": torch.tensor([[2.0]]), "a.weight": torch.tensor([[1.0]])})
    assert keys.module["a"].weight.item() == 1.0
    assert keys.module["b"].weight.item() == 2.0
    with pytest.raises(ValueError, match="differ in"):
        keys.update({"a.weight": torch.zeros(1, 1)})


def test_key_encoder_shares_nothing_with_the_query_encoder():
    encoder = nn.Linear(2, 2).train()
    keys = MomentumEncoder(encoder, 0.9)
    with torch.no_grad():
        encoder.weight.zero_()
    assert keys.module.weight.abs().sum() > 0
    assert not keys.module.training
    assert not any(parameter.requires_grad for parameter in keys.module.parameters())
