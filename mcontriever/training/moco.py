"""Negatives are keys of earlier steps, made by the momentum encoder and kept in a queue.

Letters: W ranks, B pairs a rank computes in a step, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import ranks
from ..objectives import Contrast, KeyEncoder, KeyQueue, ObjectiveSettings, moco_loss, moco_margin_loss
from ..pairs import PairBatch
from .engine import Engine
from .micro_batches import Seen, accumulate


class Moco:
    """The objective with a memory: the momentum encoder and the queue of its keys."""

    def __init__(self, settings: ObjectiveSettings, encoder: KeyEncoder, queue: KeyQueue) -> None:
        self._settings, self.encoder, self.queue = settings, encoder, queue
        self._new: tuple[Tensor, Tensor] | None = None  # this step's keys and groups

    def learn(self, engine: Engine, micro_batches: Sequence[PairBatch]) -> Seen:
        """Forward and backward the step's micro-batches. All see the same queue, so any cut gives the same gradient."""

        def contrast_of(batch: PairBatch) -> tuple[Contrast, Tensor, Tensor]:
            key = self._keys(batch)
            query = engine.embed(batch.query)  # (B, D)
            return self._contrast(query, key, batch.group), query, key

        seen = accumulate(engine, micro_batches, contrast_of)
        self._new = seen.key, torch.cat([batch.group for batch in micro_batches])
        return seen

    def after_step(self, engine: Engine) -> None:
        """θ_k follows θ_q, then the step's keys enter the queue."""
        self.encoder.follow(engine)
        if self._new is not None:
            self._enqueue(*self._new)
        self._new = None

    def forget(self) -> None:
        """In place of `after_step`: the step was not taken."""
        self._new = None

    def warm_start(self, steps: Iterable[Sequence[PairBatch]]) -> None:
        """Fill the empty queue with keys of `steps`' pairs, no more of them than it takes."""
        batches = iter(steps)
        while bool((self.queue.groups == KeyQueue.EMPTY).any()):
            micro_batches = next(batches)
            keys = torch.cat([self._keys(batch) for batch in micro_batches])
            self._enqueue(keys, torch.cat([batch.group for batch in micro_batches]))

    @torch.no_grad()
    def _keys(self, batch: PairBatch) -> Tensor:
        """(B, D)."""
        self.encoder.module.train(self._settings.key_dropout)
        keys: Tensor = self.encoder.module(batch.passage)
        return keys

    def _contrast(self, query: Tensor, key: Tensor, group: Tensor) -> Contrast:
        settings, queue = self._settings, self.queue
        if settings.loss == "margin":
            return moco_margin_loss(
                query,
                key,
                queue.keys,
                margin=settings.margin,
                hardest=settings.margin_over == "hardest",
                query_group=group,
                queue_group=queue.groups,
                mask_same_group=settings.mask_same_group,
            )
        return moco_loss(
            query,
            key,
            queue.keys,
            temperature=settings.temperature,
            label_smoothing=settings.label_smoothing,
            query_group=group,
            queue_group=queue.groups,
            mask_same_group=settings.mask_same_group,
        )

    def _enqueue(self, keys: Tensor, groups: Tensor) -> None:
        """In the order of the samples, whatever the ranks and the micro-batches."""
        self.queue.enqueue(ranks.in_sample_order(ranks.gather(keys)), ranks.in_sample_order(ranks.gather(groups)))
