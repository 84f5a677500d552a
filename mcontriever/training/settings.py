"""The root of a recipe: every room's settings put together, and the few that are training's own.

The recipe owns whatever can change results; a DeepSpeed file owns where tensors live (`ds_config.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .. import settings
from ..encoder import ModelSettings
from ..errors import SettingsError
from ..objectives import ObjectiveSettings
from ..pairs import LabelledSettings, UnlabelledSettings
from .schedule import OptimSettings


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How many pairs make a step. The number of ranks is not here: any number sees the same batches."""

    size: int = 2048
    """pairs in an optimiser step, over all ranks"""
    accumulation: int = 1
    """micro-batches a step is computed in; with in_batch negatives each sees only its own passages"""

    def __post_init__(self) -> None:
        settings.in_range("batch.size", self.size, 1, 2**24)
        settings.in_range("batch.accumulation", self.accumulation, 1, self.size)
        if self.size % self.accumulation:
            raise SettingsError(f"batch.size {self.size} must be a multiple of batch.accumulation {self.accumulation}")

    def rows_per_rank(self, world_size: int) -> int:
        """Pairs one rank computes in one micro-batch."""
        rows, left = divmod(self.size, self.accumulation * world_size)
        if left:
            product = f"batch.accumulation {self.accumulation} x {world_size} ranks"
            raise SettingsError(
                f"batch.size {self.size} must be a multiple of {product}; change it or the number of ranks"
            )
        return rows


@dataclass(frozen=True, kw_only=True)
class SavingSettings:
    """Train states on the way."""

    every: int = 1000
    """steps between train states"""
    keep: int = 2
    """train states kept, newest first"""
    keep_last: bool = True
    """whether the last train state stays when training has ended and the checkpoint is written"""

    def __post_init__(self) -> None:
        settings.in_range("saving.every", self.every, 1, 1e9)
        settings.in_range("saving.keep", self.keep, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run: pretraining on token shards, or fine-tuning on labelled pairs. Same loop."""

    output: str = ""
    """folder of the run: metrics.jsonl, train states, and in the end model/, the checkpoint"""
    init: str = ""
    """checkpoint to begin from, a folder or hub name; empty begins with random weights of the shape in [model]"""
    steps: int = 500_000
    """optimiser steps"""
    seed: int = 0
    """of weights, data order, views and dropout"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """what the encoder computes in; weights, moments, queue and averages are fp32 always"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    deepspeed_config: str = ""
    """file such as ds_configs/zero1.json; empty runs the plain engine"""
    model: ModelSettings = field(default_factory=ModelSettings)
    unlabelled: UnlabelledSettings = field(default_factory=UnlabelledSettings)
    labelled: LabelledSettings = field(default_factory=LabelledSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    saving: SavingSettings = field(default_factory=SavingSettings)

    def __post_init__(self) -> None:
        settings.in_range("steps", self.steps, 1, 1e9)
        settings.in_range("seed", self.seed, 0, 2**31 - 1)
        settings.in_range("log_every", self.log_every, 1, 1e9)
        if not self.output:
            raise SettingsError("output is missing: name the folder of the run, --output DIR")
        if bool(self.unlabelled.shards) == bool(self.labelled.file):
            given = "both are" if self.labelled.file else "neither is"
            raise SettingsError(
                f"give either unlabelled.shards (pretraining) or labelled.file (fine-tuning); {given} set"
            )
        if self.labelled.file and not self.init:
            raise SettingsError("fine-tuning begins from a checkpoint: give --init FOLDER-or-NAME")
