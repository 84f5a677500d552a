"""One model turns queries and passages of any language into vectors here, and a checkpoint knows how to use itself."""

from __future__ import annotations

from .checkpoint import check, load, save
from .contract import CheckpointError, Contract, positions
from .devices import resolve_device
from .model import Encoder, ModelSettings

__all__ = [
    "CheckpointError",
    "Contract",
    "Encoder",
    "ModelSettings",
    "check",
    "load",
    "positions",
    "resolve_device",
    "save",
]
