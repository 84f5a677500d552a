"""One model turns queries and passages of any language into vectors here, and a checkpoint knows how to use itself."""

from __future__ import annotations

from .checkpoint import KIND, check, load, save, save_outline, save_weights
from .contract import CheckpointError, Contract, positions
from .devices import resolve_device
from .flops import flops
from .model import Encoder, ModelSettings

__all__ = [
    "KIND",
    "CheckpointError",
    "Contract",
    "Encoder",
    "ModelSettings",
    "check",
    "flops",
    "load",
    "positions",
    "resolve_device",
    "save",
    "save_outline",
    "save_weights",
]
