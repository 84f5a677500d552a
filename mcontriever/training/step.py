"""One optimiser step, on one screen: keys, forward, backward, update, then the momentum encoder and the queue.

Letters: W ranks, A micro-batches a step, B pairs a rank computes in a micro-batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..objectives import Contrast, KeyQueue, MomentumEncoder, ObjectiveSettings, info_nce, moco_loss
from ..pairs import Packed, PairBatch
from .engine import Engine


@dataclass(frozen=True)
class StepResult:
    """What a step tells of itself: means over its micro-batches and ranks; `query_std` and the norm are the whole's."""

    loss: float
    accuracy: float
    positive: float
    negative: float
    query_std: float
    gradient_norm: float
    tokens: int


class InBatch:
    """Negatives are the other passages of the micro-batch, over all ranks, with the exact single-process gradient."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self._settings = settings

    def contrast(self, engine: Engine, batch: PairBatch) -> tuple[Contrast, Tensor]:
        """The loss of one micro-batch and its query vectors."""
        both = Packed(
            torch.cat([batch.query.ids, batch.passage.ids]), torch.cat([batch.query.lengths, batch.passage.lengths])
        )
        query, passage = engine.embed(both).split([len(batch.query), len(batch.passage)])
        groups = ranks.gather(batch.group) if self._settings.mask_same_group else None
        contrast = info_nce(
            query,
            ranks.gather_with_gradient(passage),
            temperature=self._settings.temperature,
            offset=ranks.rank() * len(query),
            query_group=None if groups is None else batch.group,
            passage_group=groups,
        )
        return contrast, query

    def after_step(self, engine: Engine) -> None:
        """Nothing is remembered."""


class Moco:
    """Negatives are keys of earlier steps, made by the momentum encoder."""

    def __init__(self, settings: ObjectiveSettings, encoder: MomentumEncoder, queue: KeyQueue) -> None:
        self._settings, self.encoder, self.queue = settings, encoder, queue
        self._new: list[tuple[Tensor, Tensor]] = []  # this step's keys and groups, micro-batch by micro-batch

    def contrast(self, engine: Engine, batch: PairBatch) -> tuple[Contrast, Tensor]:
        """The loss of one micro-batch and its query vectors. All micro-batches of a step see the same queue."""
        with torch.no_grad():
            key = self.encoder.module(batch.passage)  # (B, D)
        query = engine.embed(batch.query)  # (B, D)
        contrast = moco_loss(
            query,
            key,
            self.queue.keys,
            temperature=self._settings.temperature,
            query_group=batch.group,
            queue_group=self.queue.groups,
            mask_same_group=self._settings.mask_same_group,
        )
        self._new.append((key, batch.group))
        return contrast, query

    def after_step(self, engine: Engine) -> None:
        """θ_k follows θ_q; the step's keys go into the queue in the order of the samples, whatever W and A."""
        with engine.weights() as weights:
            self.encoder.update(weights)
        for key, group in self._new:
            self.queue.enqueue(ranks.in_sample_order(ranks.gather(key)), ranks.in_sample_order(ranks.gather(group)))
        self._new.clear()


Objective = InBatch | Moco


def samples_of_rank(size: int, accumulation: int) -> list[np.ndarray]:
    """Which samples of a step's `size` this rank computes: a list of A arrays. Rank r takes every W-th."""
    micro = size // accumulation
    world, rank = ranks.world_size(), ranks.rank()
    return [np.arange(start + rank, start + micro, world) for start in range(0, size, micro)]


def train_step(
    engine: Engine, objective: Objective, micro_batches: Sequence[PairBatch], learning_rate: float
) -> StepResult:
    """A micro-batches, one update of the weights, one of the objective's memory."""
    contrasts, queries = [], []
    for number, batch in enumerate(micro_batches, start=1):
        contrast, query = objective.contrast(engine, batch)
        engine.backward(contrast.loss, last=number == len(micro_batches))
        contrasts.append(torch.stack([contrast.loss, contrast.accuracy, contrast.positive, contrast.negative]).detach())
        queries.append(query.detach().float())
    norm = engine.step(learning_rate)
    objective.after_step(engine)

    tokens = sum(batch.query.ids.numel() + batch.passage.ids.numel() for batch in micro_batches)
    mean = torch.stack(contrasts).mean(dim=0).tolist()
    *sums, tokens_everywhere = ranks.sum_over_ranks([*mean, tokens], micro_batches[0].group.device)
    loss, accuracy, positive, negative = (value / ranks.world_size() for value in sums)
    return StepResult(loss, accuracy, positive, negative, _spread(queries), norm, int(tokens_everywhere))


def _spread(queries: Sequence[Tensor]) -> float:
    """Standard deviation of each dimension over all queries of the step, averaged: near 0, the encoder collapsed."""
    rows = torch.cat(list(queries)).double()  # (A*B, D)
    count = torch.full_like(rows[0], len(rows))
    count, total, squares = ranks.sum_(torch.stack([count, rows.sum(dim=0), rows.square().sum(dim=0)]))
    return float((squares / count - (total / count).square()).clamp(min=0).sqrt().mean())
