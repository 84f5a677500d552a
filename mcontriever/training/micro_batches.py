"""A step in several micro-batches that add up to the gradient of the whole: which samples, cut where, weighed how.

Letters: W ranks, A micro-batches of a step, B pairs a rank computes in a step, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..errors import SettingsError
from ..objectives import Contrast
from ..pairs import LabelledPairs, PairBatch, UnlabelledPairs
from .engine import Engine
from .settings import BatchSettings


@dataclass(frozen=True)
class Seen:
    """What a rank saw of a step: means over its B pairs, and their vectors without gradient."""

    means: Tensor  # (4,) loss, accuracy, positive, negative
    query: Tensor  # (B, D)
    key: Tensor  # (B, D) keys, or passages where there are none


def samples_of_rank(size: int, accumulation: int) -> list[np.ndarray]:
    """Which samples of a step's `size` this rank computes: a list of A arrays. Rank r takes every W-th."""
    micro = size // accumulation
    world, rank = ranks.world_size(), ranks.rank()
    return [np.arange(start + rank, start + micro, world) for start in range(0, size, micro)]


def of_step(
    step: int, pairs: UnlabelledPairs | LabelledPairs, settings: BatchSettings, device: torch.device
) -> list[PairBatch]:
    """The micro-batches this rank computes of a step."""
    return fitted(drawn(step, pairs, settings), settings, device)


def drawn(step: int, pairs: UnlabelledPairs | LabelledPairs, settings: BatchSettings) -> list[PairBatch]:
    """This rank's share of a step, not yet cut by tokens. No message is sent: another thread may call this."""
    shares = samples_of_rank(settings.size, settings.accumulation)
    return [pairs.batch(step, samples, settings.size) for samples in shares]


def fitted(share: Sequence[PairBatch], settings: BatchSettings, device: torch.device) -> list[PairBatch]:
    """A share cut by tokens and brought to the device; all ranks call together."""
    return [part.to(device) for batch in share for part in cut(batch, settings.tokens, device)]


def cut(batch: PairBatch, tokens: int, device: torch.device | str) -> list[PairBatch]:
    """A rank's share of a step in parts of at most `tokens` tokens (0: whole), and in as many on every rank.

    As many, because a collective waits in every forward and backward pass. `device` is where collectives work.
    """
    if not tokens:
        return [batch]
    longest = int((batch.query.lengths + batch.passage.lengths).max())
    needed = torch.tensor([[longest, batch.parts_for(max(tokens, longest))]], device=device)
    longest, parts = ranks.gather(needed).amax(dim=0).tolist()
    if longest > tokens:  # said by all ranks: those without the long pair would wait for the others
        raise SettingsError(f"batch.tokens is {tokens}, but a pair has {longest} tokens; raise it to at least that")
    return batch.cut(parts)


def accumulate(
    engine: Engine,
    micro_batches: Sequence[PairBatch],
    contrast_of: Callable[[PairBatch], tuple[Contrast, Tensor, Tensor]],
) -> Seen:
    """Forward and backward one micro-batch after the other, each weighed by its rows.

    `contrast_of` gives a micro-batch's loss, its query vectors and its keys.
    """
    count, rows = len(micro_batches), sum(len(batch) for batch in micro_batches)
    means, queries, keys = [], [], []
    for number, batch in enumerate(micro_batches, start=1):
        contrast, query, key = contrast_of(batch)
        weight = len(batch) * count / rows  # the engine takes the mean of the A losses; 1 where all are as long
        engine.backward(contrast.loss * weight, last=number == count)
        means.append(told(contrast) * (weight / count))
        queries.append(query.detach())
        keys.append(key.detach())
    return Seen(torch.stack(means).sum(dim=0), torch.cat(queries), torch.cat(keys))


def told(contrast: Contrast) -> Tensor:
    """A contrast's numbers in the order of `Seen.means`."""
    return torch.stack([contrast.loss, contrast.accuracy, contrast.positive, contrast.negative]).detach()
