"""InfoNCE, twice: against the passages of a batch, and against a queue of keys (MoCo).

Both work on scores as they are: Contriever's vectors are not normalised and are compared by dot product. Letters: B
queries, P passages, K keys in the queue, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Contrast:
    """A loss and what to watch beside it; everything but `loss` is detached."""

    loss: Tensor
    accuracy: Tensor  # share of queries whose positive scores above every negative
    positive: Tensor  # mean score of the positives, before the temperature
    negative: Tensor  # mean score of the negatives that count


def info_nce(
    query: Tensor,
    passage: Tensor,
    *,
    temperature: float,
    offset: int = 0,
    query_group: Tensor | None = None,
    passage_group: Tensor | None = None,
) -> Contrast:
    """Mean cross-entropy of every query against all passages.

    query (B, D); passage (P, D), whose row offset + i is the positive of query i: `offset` is rank * B when the
    passages were gathered over the ranks, else 0. Rows of equal group (B,), (P,) are never negatives of each other.
    """
    count, total = len(query), len(passage)
    if not 0 <= offset <= total - count:
        rows = f"rows {offset} to {offset + count - 1}"
        raise ValueError(f"offset {offset}: {count} queries need {rows}, there are {total} passages")
    query, passage = _at_least_float32(query), _at_least_float32(passage)
    scores = query @ passage.T  # (B, P)
    target = torch.arange(offset, offset + count, device=scores.device)
    left_out = torch.zeros_like(scores, dtype=torch.bool)
    if query_group is not None and passage_group is not None:
        left_out = query_group[:, None] == passage_group[None, :]
        left_out = left_out.scatter(1, target[:, None], False)  # a positive is never left out
    return _contrast(scores, target, left_out, temperature)


def moco_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    *,
    temperature: float,
    query_group: Tensor,
    queue_group: Tensor,
    mask_same_group: bool = True,
) -> Contrast:
    """Mean cross-entropy of every query between its own key (column 0) and the keys in the queue.

    query, key (B, D); queue (K, D); queue_group (K,), -1 where the queue is still empty: such a slot is no negative.
    The queue is read in place, so it must not change before the backward pass: enqueue after the step.
    """
    query, key = _at_least_float32(query), _at_least_float32(key)
    positive = (query * key.detach()).sum(dim=1, keepdim=True)  # (B, 1)
    negative = query @ queue.to(query.dtype).T  # (B, K); no copy where the queue is float32
    scores = torch.cat([positive, negative], dim=1)  # (B, 1 + K)
    empty = (queue_group < 0)[None, :].expand(len(query), -1)
    same = query_group[:, None] == queue_group[None, :]
    left_out = empty | same if mask_same_group else empty
    left_out = torch.cat([torch.zeros_like(left_out[:, :1]), left_out], dim=1)
    target = torch.zeros(len(query), dtype=torch.long, device=scores.device)
    return _contrast(scores, target, left_out, temperature)


def _contrast(scores: Tensor, target: Tensor, left_out: Tensor, temperature: float) -> Contrast:
    logits = (scores / temperature).masked_fill(left_out, -torch.inf)
    loss = F.cross_entropy(logits, target)
    with torch.no_grad():
        positive = scores.gather(1, target[:, None])  # (B, 1)
        negatives = ~left_out.scatter(1, target[:, None], True)
        beaten = (scores >= positive) & negatives
        count = negatives.sum().clamp(min=1)
        return Contrast(
            loss=loss,
            accuracy=(~beaten.any(dim=1)).to(scores.dtype).mean(),
            positive=positive.mean(),
            negative=(scores * negatives).sum() / count,
        )


def _at_least_float32(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))  # bf16 to fp32; fp64 stays, for tests
