"""The losses against closed forms, a naive oracle and their invariances, with inputs that tell a wrong row apart."""

import math

import pytest
import torch

from mcontriever.objectives import info_nce, moco_loss


def naive_info_nce(query, passage, temperature, offset=0, query_group=None, passage_group=None):
    """Row by row, in plain Python arithmetic."""
    losses = []
    for i, q in enumerate(query):
        scores = [float(q @ p) / temperature for p in passage]
        kept = [
            score
            for j, score in enumerate(scores)
            if j == offset + i or query_group is None or query_group[i] != passage_group[j]
        ]
        losses.append(math.log(sum(math.exp(score) for score in kept)) - scores[offset + i])
    return sum(losses) / len(losses)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_one_hot_closed_form_tells_the_offset(offset):
    B, P, c, temperature = 2, 6, 3.0, 0.5
    passage = torch.eye(P, dtype=torch.double)
    query = c * passage[offset : offset + B]
    log_z = math.log(math.exp(c / temperature) + P - 1)
    right = info_nce(query, passage, offset=offset, temperature=temperature)
    assert right.loss.item() == pytest.approx(log_z - c / temperature)
    assert right.accuracy.item() == 1.0
    assert right.positive.item() == pytest.approx(c)
    wrong = info_nce(query, passage, offset=(offset + B) % P, temperature=temperature)
    assert wrong.loss.item() == pytest.approx(log_z)
    assert wrong.accuracy.item() == 0.0


def test_info_nce_equals_the_naive_oracle_with_groups():
    query, passage = random(3, 5, seed=1), random(9, 5, seed=2)
    query_group, passage_group = torch.tensor([7, 8, 9]), torch.tensor([9, 9, 1, 7, 8, 9, 7, 3, 7])
    got = info_nce(query, passage, temperature=0.7, offset=3, query_group=query_group, passage_group=passage_group)
    expected = naive_info_nce(query, passage, 0.7, 3, query_group.tolist(), passage_group.tolist())
    assert got.loss.item() == pytest.approx(expected)
    assert got.loss.item() < info_nce(query, passage, temperature=0.7, offset=3).loss.item()


def test_offset_out_of_the_passages_is_refused():
    with pytest.raises(ValueError, match="offset 3: 2 queries need rows 3 to 4, there are 4 passages"):
        info_nce(random(2, 3), random(4, 3), temperature=1.0, offset=3)


def test_ranks_average_to_the_whole_batch_value_and_gradient():
    W, B, D = 3, 4, 8
    query, passage = random(W * B, D, seed=3).requires_grad_(), random(W * B, D, seed=4).requires_grad_()
    split = sum(info_nce(q, passage, temperature=0.3, offset=r * B).loss for r, q in enumerate(query.split(B))) / W
    whole = info_nce(query, passage, temperature=0.3).loss
    torch.testing.assert_close(
        torch.autograd.grad(split, (query, passage)), torch.autograd.grad(whole, (query, passage))
    )


def test_gradients_are_those_of_finite_differences():
    query, key, queue = random(2, 3, seed=5).requires_grad_(), random(2, 3, seed=6), random(4, 3, seed=7)
    groups = {"query_group": torch.tensor([1, 2]), "queue_group": torch.tensor([2, 5, -1, 6])}
    assert torch.autograd.gradcheck(lambda q: moco_loss(q, key, queue, temperature=0.5, **groups).loss, (query,))
    passage = random(4, 3, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, p: info_nce(q, p, temperature=0.5, offset=1).loss, (query, passage))


def test_moco_equals_info_nce_over_key_and_queue():
    B, K, D = 3, 7, 5
    query, key, queue = random(B, D, seed=1), random(B, D, seed=2), random(K, D, seed=3)
    got = moco_loss(
        query, key, queue, temperature=0.2, query_group=torch.arange(B), queue_group=torch.arange(100, 100 + K)
    )
    rows = [naive_info_nce(query[i : i + 1], torch.cat([key[i : i + 1], queue]), 0.2) for i in range(B)]
    assert got.loss.item() == pytest.approx(sum(rows) / B)


def test_moco_leaves_out_empty_slots_and_the_same_group():
    query, key, queue = random(2, 4, seed=1), random(2, 4, seed=2), random(5, 4, seed=3)
    group, queue_group = torch.tensor([10, 11]), torch.tensor([10, 12, -1, 11, -1])
    masked = moco_loss(query, key, queue, temperature=1.0, query_group=group, queue_group=queue_group)
    first = naive_info_nce(query[:1], torch.cat([key[:1], queue[[1, 3]]]), 1.0)
    second = naive_info_nce(query[1:], torch.cat([key[1:], queue[[0, 1]]]), 1.0)
    assert masked.loss.item() == pytest.approx((first + second) / 2)
    unmasked = moco_loss(
        query, key, queue, temperature=1.0, query_group=group, queue_group=queue_group, mask_same_group=False
    )
    kept = queue[[0, 1, 3]]
    rows = [naive_info_nce(query[i : i + 1], torch.cat([key[i : i + 1], kept]), 1.0) for i in range(2)]
    assert unmasked.loss.item() == pytest.approx(sum(rows) / 2)


def test_an_empty_queue_gives_no_loss_and_no_gradient():
    query = random(2, 4).requires_grad_()
    empty = torch.full((3,), -1)
    loss = moco_loss(
        query, random(2, 4), random(3, 4), temperature=0.05, query_group=torch.arange(2), queue_group=empty
    ).loss
    loss.backward()
    assert loss.item() == 0.0
    assert query.grad.abs().max().item() == 0.0


def test_no_gradient_reaches_key_or_queue():
    query, key, queue = (random(2, 4, seed=s).requires_grad_() for s in range(3))
    moco_loss(
        query, key, queue.detach(), temperature=0.5, query_group=torch.arange(2), queue_group=torch.arange(5, 7)
    ).loss.backward()
    assert query.grad is not None
    assert key.grad is None


def test_bf16_vectors_are_scored_in_fp32():
    query, passage = random(2, 4).bfloat16(), random(3, 4).bfloat16()
    assert info_nce(query, passage, temperature=1.0).loss.dtype == torch.float32
