"""Which objective, in the paper's letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import settings


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
        settings.only_for(self, "objective", ("temperature", "label_smoothing"), "loss", "info_nce")
        settings.only_for(self, "objective", ("margin", "margin_over"), "loss", "margin")
        settings.only_for(self, "objective", ("key_dropout", "warm_start"), "kind", "moco")
        settings.only_for(self, "objective", ("gradient_cache",), "kind", "in_batch")

    @property
    def ignored(self) -> str:
        """What is set without a use, in a line; else empty. So a recipe for moco can be run with in_batch as it is."""
        names = ("queue_size", "momentum") if self.kind == "in_batch" else ()
        told = [f"objective.{name}" for name in names if getattr(self, name) != getattr(type(self), name)]
        return f"{' and '.join(told)} ignored, only for objective.kind = 'moco'" if told else ""
