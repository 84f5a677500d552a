"""Which objective, in the paper's letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import settings
from ..errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The contrastive objective."""

    kind: Literal["moco", "in_batch"] = "moco"
    """moco: negatives from a queue of past keys; in_batch: the other passages of the batch, over all ranks"""
    loss: Literal["info_nce", "margin"] = "info_nce"
    """info_nce: cross-entropy among the candidates; margin: the positive must lead by a margin"""
    temperature: float = 0.05
    """τ, what scores are divided by (info_nce)"""
    label_smoothing: float = 0.0
    """share of the target that is spread evenly over all candidates that count (info_nce)"""
    margin: float = 1.0
    """by how much a positive must score above a negative, in scores as they are (margin)"""
    margin_over: Literal["all", "hardest"] = "all"
    """whether what is missing is averaged over all negatives, or taken of the highest one alone (margin)"""
    queue_size: int = 32_768
    """K, keys kept as negatives (moco)"""
    momentum: float = 0.999
    """m, the share of itself the key encoder keeps at a step (moco)"""
    key_dropout: bool = False
    """whether the key encoder drops out too, as it did for the published models (moco)"""
    warm_start: bool = False
    """whether the queue is filled with keys of real pairs before the first step, instead of filling up (moco)"""
    mask_same_group: bool = True
    """whether a passage of the same document or article is left out of the negatives"""
    gradient_cache: bool = False
    """whether all micro-batches of a step share all its passages as negatives; embeds every text twice (in_batch)"""

    def __post_init__(self) -> None:
        settings.in_range("objective.temperature", self.temperature, 0, 100, low_open=True)
        settings.in_range("objective.label_smoothing", self.label_smoothing, 0, 1, high_open=True)
        settings.in_range("objective.margin", self.margin, 0, 1e6)
        settings.in_range("objective.momentum", self.momentum, 0, 1, high_open=True)
        settings.in_range("objective.queue_size", self.queue_size, 1, 2**31)
        if self.label_smoothing and self.loss != "info_nce":
            raise SettingsError("objective.label_smoothing is for loss = 'info_nce'; a margin has no target to smooth")
        for name, kind in (("key_dropout", "moco"), ("warm_start", "moco"), ("gradient_cache", "in_batch")):
            if getattr(self, name) and self.kind != kind:
                raise SettingsError(f"objective.{name} is for kind = {kind!r}, got kind = {self.kind!r}; leave it out")
