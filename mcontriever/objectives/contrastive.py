"""InfoNCE and the margin loss, each twice: against the passages of a batch, and against a queue of keys (MoCo).

All work on scores as they are: Contriever's vectors are not normalised and are compared by dot product. What a row must
not count as its negatives is left out of everything: of the normalisation, of the smoothed target, of the means.
Letters: B queries, P passages, K keys in the queue, D dimensions, C candidates of a query (P, or 1 + K).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Contrast:
    """A loss and what to watch beside it, all means over the queries; everything but `loss` is detached."""

    loss: Tensor
    accuracy: Tensor  # share of queries whose positive scores above every negative
    positive: Tensor  # mean score of the positives, before the temperature
    negative: Tensor  # mean score of a query's negatives that count, 0 for a query without any


def info_nce(
    query: Tensor,
    passage: Tensor,
    *,
    temperature: float,
    label_smoothing: float = 0.0,
    offset: int = 0,
    query_group: Tensor | None = None,
    passage_group: Tensor | None = None,
) -> Contrast:
    """Mean cross-entropy of every query against all passages.

    query (B, D); passage (P, D), whose row offset + i is the positive of query i: `offset` is rank * B when the
    passages were gathered over the ranks, else 0. Rows of equal group (B,), (P,) are never negatives of each other.
    """
    scores = _batch_scores(query, passage, offset, query_group, passage_group)
    return scores.contrast(_cross_entropy(scores, temperature, label_smoothing))


def margin_loss(
    query: Tensor,
    passage: Tensor,
    *,
    margin: float,
    hardest: bool = False,
    offset: int = 0,
    query_group: Tensor | None = None,
    passage_group: Tensor | None = None,
) -> Contrast:
    """Mean of max(0, margin − positive + negative), over all of a query's negatives or for its hardest alone.

    The rest is as in `info_nce`. Scores are taken as they are, without a temperature: it would only rescale the margin.
    """
    scores = _batch_scores(query, passage, offset, query_group, passage_group)
    return scores.contrast(_hinge(scores, margin, hardest))


def moco_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    label_smoothing: float = 0.0,
    query_group: Tensor,
    queue_group: Tensor,
    mask_same_group: bool = True,
) -> Contrast:
    """Mean cross-entropy of every query between its own key (column 0) and the keys in the queue.

    query, key (B, D); queue (K, D); queue_group (K,), -1 where the queue is still empty: such a slot is no negative.
    The queue is read in place, so it must not change before the backward pass: enqueue after the step.
    """
    scores = _queue_scores(query, key, queue, query_group, queue_group, mask_same_group)
    return scores.contrast(_cross_entropy(scores, temperature, label_smoothing))


def moco_margin_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    margin: float,
    hardest: bool = False,
    query_group: Tensor,
    queue_group: Tensor,
    mask_same_group: bool = True,
) -> Contrast:
    """The loss of `margin_loss` with the candidates of `moco_loss`."""
    scores = _queue_scores(query, key, queue, query_group, queue_group, mask_same_group)
    return scores.contrast(_hinge(scores, margin, hardest))


@dataclass(frozen=True)
class _Scores:
    """What every query scores its candidates, which of them is right, and which do not count."""

    values: Tensor  # (B, C)
    target: Tensor  # (B,) column of the positive
    left_out: Tensor  # (B, C) bool, never at the positive

    @property
    def positive(self) -> Tensor:
        return self.values.gather(1, self.target[:, None])  # (B, 1)

    @property
    def negatives(self) -> Tensor:
        return ~self.left_out.scatter(1, self.target[:, None], True)  # (B, C)

    @torch.no_grad()
    def contrast(self, loss: Tensor) -> Contrast:
        positive, negatives = self.positive, self.negatives
        won = (positive > self.values) | ~negatives  # no number never wins
        count = negatives.sum(dim=1).clamp(min=1)
        return Contrast(
            loss=loss,
            accuracy=won.all(dim=1).to(self.values.dtype).mean(),
            positive=positive.mean(),
            negative=((self.values * negatives).sum(dim=1) / count).mean(),
        )


def _batch_scores(
    query: Tensor, passage: Tensor, offset: int, query_group: Tensor | None, passage_group: Tensor | None
) -> _Scores:
    count, total = len(query), len(passage)
    if not 0 <= offset <= total - count:
        rows = f"rows {offset} to {offset + count - 1}"
        raise ValueError(f"offset {offset}: {count} queries need {rows}, there are {total} passages")
    values = _at_least_float32(query) @ _at_least_float32(passage).T  # (B, P)
    target = torch.arange(offset, offset + count, device=values.device)
    left_out = torch.zeros_like(values, dtype=torch.bool)
    if query_group is not None and passage_group is not None:
        left_out = query_group[:, None] == passage_group[None, :]
        left_out = left_out.scatter(1, target[:, None], False)  # a positive is never left out
    return _Scores(values, target, left_out)


def _queue_scores(
    query: Tensor, key: Tensor, queue: Tensor, query_group: Tensor, queue_group: Tensor, mask_same_group: bool
) -> _Scores:
    query, key = _at_least_float32(query), _at_least_float32(key)
    positive = (query * key.detach()).sum(dim=1, keepdim=True)  # (B, 1)
    negative = query @ queue.to(query.dtype).T  # (B, K); no copy where the queue is float32
    left_out = (queue_group < 0)[None, :].expand(len(query), -1)
    if mask_same_group:
        left_out = left_out | (query_group[:, None] == queue_group[None, :])
    return _Scores(
        values=torch.cat([positive, negative], dim=1),  # (B, 1 + K)
        target=torch.zeros(len(query), dtype=torch.long, device=query.device),
        left_out=F.pad(left_out, (1, 0), value=False),
    )


def _cross_entropy(scores: _Scores, temperature: float, label_smoothing: float) -> Tensor:
    logits = (scores.values / temperature).masked_fill(scores.left_out, -torch.inf)
    if not label_smoothing:
        return F.cross_entropy(logits, scores.target)
    # torch's own label smoothing would also wish for some of what is left out, and be infinite
    log_shares = logits.log_softmax(dim=1)
    right = log_shares.gather(1, scores.target[:, None])[:, 0]
    counting = (~scores.left_out).sum(dim=1)
    even = log_shares.masked_fill(scores.left_out, 0.0).sum(dim=1) / counting
    return -((1.0 - label_smoothing) * right + label_smoothing * even).mean()


def _hinge(scores: _Scores, margin: float, hardest: bool) -> Tensor:
    negatives = scores.negatives
    short = F.relu(margin - scores.positive + scores.values)  # by how much each negative comes too near
    short = short.masked_fill(~negatives, 0.0)
    if hardest:
        return short.amax(dim=1).mean()
    return (short.sum(dim=1) / negatives.sum(dim=1).clamp(min=1)).mean()


def _at_least_float32(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))  # bf16 to fp32; fp64 stays, for tests
