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
    temperature: float = 0.05
    """τ, what scores are divided by"""
    queue_size: int = 32_768
    """K, keys kept as negatives (moco)"""
    momentum: float = 0.999
    """m, the share of itself the key encoder keeps at a step (moco)"""
    mask_same_group: bool = True
    """whether a passage of the same document or article is left out of the negatives"""

    def __post_init__(self) -> None:
        settings.in_range("objective.temperature", self.temperature, 0, 100, low_open=True)
        settings.in_range("objective.momentum", self.momentum, 0, 1, high_open=True)
        settings.in_range("objective.queue_size", self.queue_size, 1, 2**31)
