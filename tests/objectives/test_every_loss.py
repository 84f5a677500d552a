"""What holds for every loss alike: invariances, the borders of its domain, and that the queue is read where it lies."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcontriever.objectives import KeyQueue, info_nce, margin_loss, moco_loss, moco_margin_loss


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def every_loss(query, passage, queue, group, queue_group):
    """Each loss once, the positive of query i being passage i."""
    groups = {"query_group": group, "passage_group": group}
    with_queue = {"query_group": group, "queue_group": queue_group}
    return {
        "info_nce": info_nce(query, passage, temperature=0.5, **groups),
        "smoothed": info_nce(query, passage, temperature=0.5, label_smoothing=0.1, **groups),
        "margin": margin_loss(query, passage, margin=1.0, **groups),
        "hardest": margin_loss(query, passage, margin=1.0, hardest=True, **groups),
        "moco": moco_loss(query, passage, queue, temperature=0.5, **with_queue),
        "moco smoothed": moco_loss(query, passage, queue, temperature=0.5, label_smoothing=0.1, **with_queue),
        "moco margin": moco_margin_loss(query, passage, queue, margin=1.0, **with_queue),
        "moco hardest": moco_margin_loss(query, passage, queue, margin=1.0, hardest=True, **with_queue),
    }


def test_the_order_of_negatives_and_a_rotation_of_the_space_change_nothing():
    B, K, D = 4, 6, 5
    query, passage, queue = random(B, D, seed=1), random(B, D, seed=2), random(K, D, seed=3)
    group, queue_group = torch.tensor([1, 2, 3, 1]), torch.tensor([5, 1, -1, 6, 7, 2])
    expected = every_loss(query, passage, queue, group, queue_group)
    rows, slots = torch.tensor([2, 0, 3, 1]), torch.tensor([5, 3, 0, 1, 4, 2])
    turn = torch.linalg.qr(random(D, D, seed=4))[0]
    got = every_loss(query[rows] @ turn, passage[rows] @ turn, queue[slots] @ turn, group[rows], queue_group[slots])
    for name, want in expected.items():
        for field in ("loss", "accuracy", "positive", "negative"):
            torch.testing.assert_close(getattr(got[name], field), getattr(want, field), msg=f"{name}.{field}")


@pytest.mark.parametrize("rows", [1, 3])
def test_one_row_or_only_rows_of_one_group_have_nothing_to_learn_from(rows):
    query = random(rows, 4, seed=1).requires_grad_()
    group = torch.full((rows,), 7)
    everything = every_loss(query, random(rows, 4, seed=2), random(5, 4, seed=3), group, torch.full((5,), 7))
    for name, got in everything.items():
        (gradient,) = torch.autograd.grad(got.loss, query)
        assert got.loss.item() == 0.0, name
        assert gradient.abs().max() == 0.0, name
        assert (got.accuracy.item(), got.negative.item()) == (1.0, 0.0), name


def test_what_is_no_number_is_not_hidden():
    passage, queue = torch.eye(3, 4, dtype=torch.double), random(5, 4, seed=3) / 10
    query = 3 * passage
    query[1, 2] = torch.nan
    for name, got in every_loss(query, passage, queue, torch.arange(3), torch.arange(10, 15)).items():
        assert math.isnan(got.loss.item()), name
        assert got.accuracy.item() == pytest.approx(2 / 3), f"{name}: a row without numbers is not right"


def test_a_batch_larger_than_the_queue():
    query, key = random(5, 4, seed=1), random(5, 4, seed=2)
    queue = KeyQueue(3, 4)
    queue.enqueue(key, torch.arange(5))
    assert queue.groups.tolist() == [3, 4, 2]
    got = moco_loss(query, key, queue.keys, temperature=1.0, query_group=torch.arange(5), queue_group=queue.groups)
    losses = []
    for i in range(5):
        kept = queue.keys[queue.groups != i].double()
        alone = info_nce(query[i : i + 1], torch.cat([key[i : i + 1], kept]), temperature=1.0)
        one = {"query_group": torch.tensor([i]), "queue_group": queue.groups}
        row = moco_loss(query[i : i + 1], key[i : i + 1], queue.keys, temperature=1.0, **one)
        assert row.loss.item() == pytest.approx(alone.loss.item())
        losses.append(row.loss.item())
    assert got.loss.item() == pytest.approx(sum(losses) / 5)


class Watch(TorchDispatchMode):
    """Notes the memory of every tensor that any operation gives, forward and backward."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.given.append((str(function), tensor.untyped_storage().data_ptr(), tensor.numel()))
        return result


@pytest.mark.parametrize("loss", [moco_loss, moco_margin_loss])
def test_the_queue_is_never_copied(loss):
    B, K, D = 2, 50, 8
    query, key, queue = random(B, D).float().requires_grad_(), random(B, D).float(), random(K, D).float()
    number = {"temperature": 0.5} if loss is moco_loss else {"margin": 1.0}
    groups = {"query_group": torch.arange(B), "queue_group": torch.arange(10, 10 + K)}
    saved = []
    with Watch() as watch, torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss(query, key, queue, **number, **groups).loss.backward()
    as_large = [(name, place) for name, place, numel in watch.given if numel >= K * D]
    assert {place for _, place in as_large} == {queue.untyped_storage().data_ptr()}, as_large
    assert any(tensor.data_ptr() == queue.data_ptr() for tensor in saved), "the backward pass reads the queue itself"


def test_a_queue_changed_before_the_backward_pass_is_an_error_not_a_wrong_gradient():
    query, queue = random(2, 4).float().requires_grad_(), KeyQueue(5, 4)
    queue.enqueue(random(5, 4).float(), torch.arange(5))
    groups = {"query_group": torch.arange(10, 12), "queue_group": queue.groups}
    loss = moco_loss(query, random(2, 4).float(), queue.keys, temperature=0.5, **groups).loss
    queue.enqueue(random(2, 4).float(), torch.arange(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
