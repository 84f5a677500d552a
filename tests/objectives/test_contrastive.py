"""The losses against closed forms, a naive oracle and their invariances, with inputs that tell a wrong row apart."""

import math

import pytest
import torch

from mcontriever.errors import SettingsError
from mcontriever.objectives import ObjectiveSettings, info_nce, margin_loss, moco_loss, moco_margin_loss


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


def naive_candidates(query_group, passage_group, i, positive):
    """Which columns count for query i, the positive always."""
    return [j for j, group in enumerate(passage_group) if j == positive or group != query_group[i]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_targets_are_spread_over_the_candidates_that_count(smoothing):
    query, passage = random(3, 5, seed=1), random(6, 5, seed=2)
    query_group, passage_group = [7, 8, 9], [7, 8, 9, 7, 8, 1]
    losses = []
    for i, q in enumerate(query):
        scores = {j: float(q @ passage[j]) / 0.7 for j in naive_candidates(query_group, passage_group, i, i)}
        log_z = math.log(sum(math.exp(score) for score in scores.values()))
        target = {j: smoothing / len(scores) + (1 - smoothing) * (j == i) for j in scores}
        losses.append(sum(target[j] * (log_z - scores[j]) for j in scores))
    groups = {"query_group": torch.tensor(query_group), "passage_group": torch.tensor(passage_group)}
    got = info_nce(query, passage, temperature=0.7, label_smoothing=smoothing, **groups)
    assert got.loss.item() == pytest.approx(sum(losses) / 3)


def test_smoothing_in_closed_form():
    """All N candidates score alike: whatever the target, the loss is log N. One scores c, the target is spread."""
    N, c, smoothing = 5, 2.0, 0.25
    alike = info_nce(torch.zeros(N, 4), random(N, 4).float(), temperature=1.0, label_smoothing=smoothing)
    assert alike.loss.item() == pytest.approx(math.log(N))
    passage = torch.eye(N, dtype=torch.double)
    log_z = math.log(math.exp(c) + N - 1)
    one = info_nce(c * passage[:1], passage, temperature=1.0, label_smoothing=smoothing)
    assert one.loss.item() == pytest.approx(log_z - c * (1 - smoothing + smoothing / N))


def test_smoothing_equals_torchs_own_where_nothing_is_left_out():
    query, passage = random(4, 5, seed=1), random(6, 5, seed=2)
    target = torch.arange(1, 5)
    expected = torch.nn.functional.cross_entropy(query @ passage.T / 0.3, target, label_smoothing=0.2)
    got = info_nce(query, passage, temperature=0.3, label_smoothing=0.2, offset=1)
    torch.testing.assert_close(got.loss, expected)


def test_what_is_left_out_gets_no_gradient_with_smoothing():
    query, passage = random(2, 4, seed=1), random(3, 4, seed=2).requires_grad_()
    groups = {"query_group": torch.tensor([1, 2]), "passage_group": torch.tensor([1, 2, 1])}
    info_nce(
        query[:1],
        passage,
        temperature=0.5,
        label_smoothing=0.3,
        query_group=groups["query_group"][:1],
        passage_group=groups["passage_group"],
    ).loss.backward()
    assert passage.grad[2].abs().max() == 0
    assert passage.grad[1].abs().max() > 0


@pytest.mark.parametrize("hardest", [False, True])
def test_margin_equals_the_naive_oracle(hardest):
    query, passage, margin = random(3, 5, seed=1), random(8, 5, seed=2), 0.8
    query_group, passage_group = [7, 8, 9], [9, 7, 8, 9, 9, 7, 8, 3]
    offset, losses = 1, []
    for i, q in enumerate(query):
        positive = float(q @ passage[offset + i])
        negatives = set(naive_candidates(query_group, passage_group, i, offset + i)) - {offset + i}
        short = [max(0.0, margin - positive + float(q @ passage[j])) for j in negatives]
        losses.append(max(short) if hardest else sum(short) / len(short))
    groups = {"query_group": torch.tensor(query_group), "passage_group": torch.tensor(passage_group)}
    got = margin_loss(query, passage, margin=margin, hardest=hardest, offset=offset, **groups)
    assert got.loss.item() == pytest.approx(sum(losses) / 3)
    assert len(set(losses)) == 3


def test_margin_in_closed_form_and_nothing_left_to_learn_beyond_it():
    P, c = 4, 2.0
    passage = torch.eye(P, dtype=torch.double)
    query = (c * passage[:2]).requires_grad_()
    for hardest in (False, True):
        near = margin_loss(query, passage, margin=3.0, hardest=hardest)
        assert near.loss.item() == pytest.approx(3.0 - c)
        far = margin_loss(query, passage, margin=1.5, hardest=hardest)
        assert far.loss.item() == 0.0
        assert torch.autograd.grad(far.loss, query)[0].abs().max() == 0


def test_margin_gradients_are_those_of_finite_differences():
    query, passage = random(2, 3, seed=5).requires_grad_(), random(4, 3, seed=8).requires_grad_()
    for hardest in (False, True):
        assert torch.autograd.gradcheck(
            lambda q, p, hardest=hardest: margin_loss(q, p, margin=2.0, hardest=hardest, offset=1).loss,
            (query, passage),
        )


def test_margin_over_a_queue_equals_margin_over_key_and_queue():
    B, K, D = 3, 7, 5
    query, key, queue = random(B, D, seed=1), random(B, D, seed=2), random(K, D, seed=3)
    groups = {"query_group": torch.arange(B), "queue_group": torch.tensor([-1, 0, 100, 101, 2, 102, -1])}
    for hardest in (False, True):
        rows = []
        for i in range(B):
            kept = [j for j, group in enumerate(groups["queue_group"].tolist()) if group not in (-1, i)]
            passages = torch.cat([key[i : i + 1], queue[kept]])
            rows.append(margin_loss(query[i : i + 1], passages, margin=1.0, hardest=hardest).loss.item())
        got = moco_margin_loss(query, key, queue, margin=1.0, hardest=hardest, **groups)
        assert got.loss.item() == pytest.approx(sum(rows) / B)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label_smoothing": 1.0}, "objective.label_smoothing must lie in [0, 1), got 1.0"),
        ({"margin": -0.1, "loss": "margin"}, "objective.margin must lie in [0, 1000000], got -0.1"),
        (
            {"loss": "margin", "label_smoothing": 0.1},
            "objective.label_smoothing is only for objective.loss = 'info_nce'",
        ),
        (
            {"gradient_cache": True},
            "is only for objective.kind = 'in_batch', got kind = 'moco'; leave it out or set it to False",
        ),
        ({"kind": "in_batch", "key_dropout": True}, "objective.key_dropout is only for objective.kind = 'moco'"),
        ({"kind": "in_batch", "warm_start": True}, "objective.warm_start is only for objective.kind = 'moco'"),
        ({"loss": "margin", "temperature": 0.1}, "objective.temperature is only for objective.loss = 'info_nce'"),
        ({"margin": 2.0}, "objective.margin is only for objective.loss = 'margin'"),
        ({"margin_over": "hardest"}, "objective.margin_over is only for objective.loss = 'margin'"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(given, words):
    with pytest.raises(SettingsError) as caught:
        ObjectiveSettings(**given)
    assert words in str(caught.value)


def test_a_queue_without_moco_is_told_not_refused():
    assert ObjectiveSettings(kind="in_batch", queue_size=7, momentum=0.9).ignored == (
        "objective.queue_size and objective.momentum ignored, only for objective.kind = 'moco'"
    )
    assert ObjectiveSettings(kind="in_batch").ignored == ObjectiveSettings(queue_size=7).ignored == ""
