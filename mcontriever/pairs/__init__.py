"""Shards and labelled files become training batches here: which pair, which views of it, packed for the encoder."""

from __future__ import annotations

from .labelled import LabelledPairs, LabelledSettings
from .mixture import Mixture
from .packing import Packed, PairBatch, pack, padding_share
from .prefetch import prefetch
from .salience import EncoderSalience, Scorer
from .unlabelled import UnlabelledPairs, UnlabelledSettings
from .unlabelled_settings import BM25

__all__ = [
    "BM25",
    "EncoderSalience",
    "LabelledPairs",
    "LabelledSettings",
    "Mixture",
    "Packed",
    "PairBatch",
    "Scorer",
    "UnlabelledPairs",
    "UnlabelledSettings",
    "pack",
    "padding_share",
    "prefetch",
]
