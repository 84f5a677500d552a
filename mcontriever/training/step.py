"""One optimiser step, on one screen: forward and backward, the update, then the objective's memory.

Letters: W ranks, A micro-batches a step, B pairs a rank computes in a step, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ranks
from ..pairs import PairBatch
from .engine import Engine
from .in_batch import InBatch
from .micro_batches import Seen, samples_of_rank
from .moco import Moco

__all__ = ["InBatch", "Moco", "Objective", "StepResult", "samples_of_rank", "train_step"]

Objective = InBatch | Moco


@dataclass(frozen=True)
class StepResult:
    """What a step tells of itself, over all its pairs on all ranks."""

    loss: float
    accuracy: float
    positive: float
    negative: float
    query_std: float
    """standard deviation of the query vectors, averaged over the dimensions: near 0, the encoder has collapsed"""
    key_std: float
    """the same of the keys, or of the passages where there are none"""
    gradient_norm: float
    tokens: int
    padding: float
    """share of padding, had queries and passages been padded to the longest of each"""


def train_step(
    engine: Engine,
    objective: Objective,
    micro_batches: Sequence[PairBatch],
    learning_rate: float,
    accept: Callable[[Tensor], bool] | None = None,
) -> StepResult:
    """A micro-batches, one update of the weights, one of the objective's memory.

    `accept` is given this rank's loss before the update, and says (on all ranks the same) whether there is to be one.
    """
    engine.micro_batches(len(micro_batches))
    seen = objective.learn(engine, micro_batches)
    if accept is None or accept(seen.means[0]):
        norm = engine.step(learning_rate)
    else:
        engine.discard()
        norm = math.nan
    if math.isfinite(norm):
        objective.after_step(engine)
    else:  # the weights have not changed, and nothing of such a step is worth remembering
        objective.forget()

    means = ranks.sum_over_ranks(seen.means.tolist(), seen.means.device)
    loss, accuracy, positive, negative = (value / ranks.world_size() for value in means)
    query_std, key_std = _spreads(seen)
    tokens, padding = _sizes(micro_batches)
    return StepResult(loss, accuracy, positive, negative, query_std, key_std, norm, tokens, padding)


def _spreads(seen: Seen) -> list[float]:
    """Mean over the dimensions of the standard deviation over all queries, and over all keys."""
    rows = torch.stack([seen.query, seen.key], dim=1).double()  # (B, 2, D)
    count = torch.full_like(rows[0], len(rows))
    count, total, squares = ranks.sum_(torch.stack([count, rows.sum(dim=0), rows.square().sum(dim=0)]))
    deviation = (squares / count - (total / count).square()).clamp(min=0).sqrt()  # (2, D)
    return deviation.mean(dim=1).tolist()  # type: ignore[no-any-return]


def _sizes(micro_batches: Sequence[PairBatch]) -> tuple[int, float]:
    """Tokens of all ranks, and the share of padding that there would be."""
    sides: list[Tensor] = [
        torch.cat([batch.query.lengths for batch in micro_batches]),
        torch.cat([batch.passage.lengths for batch in micro_batches]),
    ]
    lengths = ranks.gather(torch.stack(sides, dim=1))  # (W*B, 2)
    tokens, padded = int(lengths.sum()), int(lengths.amax(dim=0).sum()) * len(lengths)
    return tokens, 1.0 - tokens / padded
