"""Shards and labelled files become training batches here: which pair, which views of it, packed for the encoder."""

from __future__ import annotations

from .packing import Packed, PairBatch, pack

__all__ = ["Packed", "PairBatch", "pack"]
