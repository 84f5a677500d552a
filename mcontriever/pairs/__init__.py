"""Shards and labelled files become training batches here: which pair, which views of it, packed for the encoder."""

from __future__ import annotations

from .labelled import LabelledPairs, LabelledSettings
from .mixture import Mixture
from .packing import Packed, PairBatch, pack
from .unlabelled import UnlabelledPairs, UnlabelledSettings

__all__ = [
    "LabelledPairs",
    "LabelledSettings",
    "Mixture",
    "Packed",
    "PairBatch",
    "UnlabelledPairs",
    "UnlabelledSettings",
    "pack",
]
