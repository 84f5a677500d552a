"""Negatives are the other passages of the batch, over all ranks, with the exact single-process gradient.

Plainly every micro-batch is a batch of its own. With the gradient cache all micro-batches of a step are one batch, of
any size: its vectors fit into memory even where what their backward pass would need does not. Letters: W ranks, A
micro-batches, B pairs a rank computes in a step, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ranks
from ..objectives import Contrast, ObjectiveSettings, info_nce, margin_loss
from ..pairs import Packed, PairBatch
from .engine import Engine
from .micro_batches import Seen, accumulate, told


class InBatch:
    """The objective without a memory."""

    def __init__(self, settings: ObjectiveSettings) -> None:
        self._settings = settings

    def learn(self, engine: Engine, micro_batches: Sequence[PairBatch]) -> Seen:
        """Forward and backward the step's micro-batches."""
        if self._settings.gradient_cache and len(micro_batches) > 1:
            return self._learn_cached(engine, micro_batches)

        def contrast_of(batch: PairBatch) -> tuple[Contrast, Tensor, Tensor]:
            query, passage = _embed(engine, batch)
            return self._contrast(query, passage, batch.group), query, passage

        return accumulate(engine, micro_batches, contrast_of)

    def after_step(self, engine: Engine) -> None:
        """Nothing is remembered."""

    def forget(self) -> None:
        """Nothing was."""

    def _contrast(self, query: Tensor, passage: Tensor, group: Tensor) -> Contrast:
        settings, groups = self._settings, ranks.gather(group) if self._settings.mask_same_group else None
        everyone = ranks.gather_with_gradient(passage)  # (W*B, D)
        offset, own = ranks.rank() * len(query), None if groups is None else group
        if settings.loss == "margin":
            return margin_loss(
                query,
                everyone,
                margin=settings.margin,
                hardest=settings.margin_over == "hardest",
                offset=offset,
                query_group=own,
                passage_group=groups,
            )
        return info_nce(
            query,
            everyone,
            temperature=settings.temperature,
            label_smoothing=settings.label_smoothing,
            offset=offset,
            query_group=own,
            passage_group=groups,
        )

    def _learn_cached(self, engine: Engine, micro_batches: Sequence[PairBatch]) -> Seen:
        """Vectors first, without gradient; the loss's gradient at the vectors; then each micro-batch again with it."""
        device = micro_batches[0].group.device
        dropout, halves = [], []
        with torch.no_grad():
            for batch in micro_batches:
                dropout.append(_generators(device))
                halves.append(_embed(engine, batch))
        query, passage = (torch.cat(side).requires_grad_() for side in zip(*halves, strict=True))  # (B, D) each
        contrast = self._contrast(query, passage, torch.cat([batch.group for batch in micro_batches]))
        gradients = torch.autograd.grad(contrast.loss, (query, passage))
        sizes = [len(batch) for batch in micro_batches]
        shares = zip(*(gradient.split(sizes) for gradient in gradients), strict=True)
        for number, (batch, state, (to_query, to_passage)) in enumerate(
            zip(micro_batches, dropout, shares, strict=True), start=1
        ):
            _restore_generators(device, state)  # what was dropped at first is dropped again
            again_query, again_passage = _embed(engine, batch)
            # a number whose gradient at the vectors is the cached one; the engine divides by the A of them
            stand_in = (again_query * to_query).sum() + (again_passage * to_passage).sum()
            engine.backward(stand_in * len(micro_batches), last=number == len(micro_batches))
        return Seen(told(contrast), query.detach(), passage.detach())


def _embed(engine: Engine, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Query and passage vectors, (B, D) each, in one pass."""
    both = Packed.joined(batch.query, batch.passage)
    query, passage = engine.embed(both).split([len(batch.query), len(batch.passage)])
    return query, passage


def _generators(device: torch.device) -> list[Tensor]:
    """Where the generators stand that dropout on `device` may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _restore_generators(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
