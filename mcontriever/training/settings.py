"""The root of a recipe: every room's settings put together, and the few that are training's own.

The recipe owns whatever can change results; a DeepSpeed file owns where tensors live (`ds_config.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from .. import settings
from ..encoder import ModelSettings
from ..errors import SettingsError
from ..evaluation import Measure, parse_pairs
from ..objectives import ObjectiveSettings
from ..pairs import LabelledSettings, UnlabelledSettings
from .schedule import OptimSettings


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How many pairs make a step. The number of ranks is not here: any number sees the same batches."""

    size: int = 2048
    """pairs in an optimiser step, over all ranks"""
    accumulation: int = 1
    """micro-batches a step is computed in; with in_batch each sees only its own passages, but for gradient_cache"""
    tokens: int = 0
    """most tokens a rank computes at once, which then sets the number of micro-batches of each step; 0: no bound"""

    def __post_init__(self) -> None:
        settings.in_range("batch.size", self.size, 1, 2**24)
        settings.in_range("batch.accumulation", self.accumulation, 1, self.size)
        if self.size % self.accumulation:
            raise SettingsError(f"batch.size {self.size} must be a multiple of batch.accumulation {self.accumulation}")
        settings.in_range("batch.tokens", self.tokens, 0, 2**40)
        if self.tokens and self.accumulation > 1:
            raise SettingsError(
                f"batch.tokens {self.tokens} sets the number of micro-batches; leave batch.accumulation at 1, "
                f"got {self.accumulation}"
            )

    def rows_per_rank(self, world_size: int) -> int:
        """Pairs one rank computes in one micro-batch."""
        rows, left = divmod(self.size, self.accumulation * world_size)
        if left:
            product = f"batch.accumulation {self.accumulation} x {world_size} ranks"
            raise SettingsError(
                f"batch.size {self.size} must be a multiple of {product}; change it, or take "
                f"{' or '.join(map(str, self._nearest(world_size)))} ranks"
            )
        return rows

    def _nearest(self, world_size: int) -> list[int]:
        """Numbers of ranks that divide a micro-batch: the next below, and the next above if there is one."""
        pairs = self.size // self.accumulation
        fewer = max(count for count in range(1, world_size) if not pairs % count)
        more = next((count for count in range(world_size + 1, pairs + 1) if not pairs % count), None)
        return [fewer] if more is None else [fewer, more]


@dataclass(frozen=True, kw_only=True)
class SavingSettings:
    """Train states on the way."""

    every: int = 1000
    """steps between train states"""
    keep: int = 2
    """train states kept, newest first"""
    keep_last: bool = True
    """whether the last train state stays when training has ended and the checkpoint is written"""

    best: str = ""
    """a measure of the evaluation in training, or `loss`: the state best by it is kept besides; empty keeps none"""

    def __post_init__(self) -> None:
        settings.in_range("saving.every", self.every, 1, 1e9)
        settings.in_range("saving.keep", self.keep, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What is watched while training goes on."""

    on_nan: Literal["stop", "skip"] = "stop"
    """what to do with a step whose loss or gradient is no number, or whose loss leaps; either writes its batch out"""
    skips: int = 10
    """most steps a run may skip before it stops after all"""
    spike_sigmas: float = 0.0
    """a loss this many standard deviations above the mean of the window counts as a leap; 0: none does"""
    window: int = 128
    """steps whose loss a leap is measured against; none is seen before there are so many"""
    collapse: float = 0.1
    """a line warns when the spread of queries or keys is under this share of its largest so far; 0: none does"""
    hang_seconds: float = 1800.0
    """a rank without a sign of life for so long says where it stands and ends; longer than a save; 0: waits for ever,
    but for the limits of DeepSpeed's own groups"""

    def __post_init__(self) -> None:
        settings.in_range("guard.skips", self.skips, 0, 1_000_000)
        settings.in_range("guard.spike_sigmas", self.spike_sigmas, 0, 1000)
        settings.in_range("guard.window", self.window, 2, 1_000_000)
        settings.in_range("guard.collapse", self.collapse, 0, 1, high_open=True)
        settings.in_range("guard.hang_seconds", self.hang_seconds, 0, 1e7)


@dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """Where curves go besides metrics.jsonl, and what they are compared with."""

    tensorboard: bool = False
    """write event files for TensorBoard into OUTPUT/tensorboard"""
    wandb: str = ""
    """project of Weights & Biases to log to; empty: none. WANDB_MODE=offline keeps it in OUTPUT/wandb"""
    gemm_share: bool = True
    """whether the share of the machine's peak is logged"""
    gemm_tflops: float = 0.0
    """that peak of one rank, 10^12 operations a second, where it is known; 0 measures it when the run starts"""

    def __post_init__(self) -> None:
        settings.in_range("logging.gemm_tflops", self.gemm_tflops, 0, 1e6)
        if self.wandb and not re.fullmatch(r"[^/\\#?%:]{1,128}", self.wandb):
            raise SettingsError(f"logging.wandb must be a project's name without /\\#?%:, got {self.wandb!r}")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Retrieval measured while training. Never changes what is trained."""

    data: str = ""
    """folder with corpus.<lang>.jsonl, queries.<lang>.jsonl and qrels/<split>.<lang>.tsv; empty: nothing is measured"""
    pairs: tuple[str, ...] = ()
    """tasks such as ar-en (Arabic questions, English passages); by default each alone, then each over English"""
    split: str = "test"
    """which qrels"""
    measures: tuple[str, ...] = ("MRR@10", "Recall@10")
    """MRR, Recall or nDCG with their cuts"""
    every: int = 1000
    """steps between evaluations; there is one after the last step in any case"""
    first: bool = True
    """whether the encoder is measured before its first step too"""
    queries: int = 0
    """queries of a task, the first of its qrels; 0: all"""
    passages: int = 0
    """passages that are searched: the relevant ones and the first of the others, which makes it easier; 0: all"""
    batch_tokens: int = 4096
    """tokens that go through the encoder at a time"""

    def __post_init__(self) -> None:
        settings.in_range("evaluation.every", self.every, 1, 1e9)
        settings.in_range("evaluation.queries", self.queries, 0, 1e9)
        settings.in_range("evaluation.passages", self.passages, 0, 1e9)
        settings.in_range("evaluation.batch_tokens", self.batch_tokens, 1, 10_000_000)
        if not self.measures:
            raise SettingsError("evaluation.measures is empty; name some, such as MRR@10,Recall@10")
        for word in self.measures:
            Measure.parse(word)
        parse_pairs(self.pairs)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What --plan reckons with. Never changes what is trained."""

    gpus: int = 0
    """how many GPUs, one rank each; 0: as many as this launch has ranks"""
    tflops: float = 150.0
    """10^12 operations a second that a GPU keeps up in the recipe's precision; half of an A100's peak in bf16 is 156"""
    gbytes: float = 25.0
    """10^9 bytes a second that a GPU sends to the others, 25 over a 200 Gbit/s network; 0 leaves sending out"""
    memory_gbytes: float = 1500.0
    """10^9 bytes a second that a GPU reads and writes in its memory, for the update; 1555 is an A100's peak"""
    tokens: float = 0.0
    """mean tokens of a text; 0: from the lengths in the recipe"""
    vocabulary: int = 250_002
    """words of the tokenizer, where neither shards nor init tell; XLM-R's by default"""

    def __post_init__(self) -> None:
        settings.in_range("planning.gpus", self.gpus, 0, 1_000_000)
        settings.in_range("planning.tflops", self.tflops, 0, 1e6, low_open=True)
        settings.in_range("planning.gbytes", self.gbytes, 0, 1e6)
        settings.in_range("planning.memory_gbytes", self.memory_gbytes, 0, 1e6, low_open=True)
        settings.in_range("planning.tokens", self.tokens, 0, 1e6)
        settings.in_range("planning.vocabulary", self.vocabulary, 1, 1e9)


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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """what the encoder computes in; weights, moments, queue and averages are fp32 always"""
    activation_checkpointing: bool = False
    """whether a layer's forward pass is computed again in the backward pass: less memory, a third more arithmetic"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    deepspeed_config: str = ""
    """file such as ds_configs/zero1.json; empty runs the plain engine"""
    plan: bool = False
    """only say what the run would take: memory, messages, time; nothing is trained or written"""
    model: ModelSettings = field(default_factory=ModelSettings)
    unlabelled: UnlabelledSettings = field(default_factory=UnlabelledSettings)
    labelled: LabelledSettings = field(default_factory=LabelledSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    saving: SavingSettings = field(default_factory=SavingSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    planning: PlanSettings = field(default_factory=PlanSettings)

    def __post_init__(self) -> None:
        settings.in_range("steps", self.steps, 1, 1e9)
        settings.in_range("seed", self.seed, 0, 2**31 - 1)
        settings.in_range("log_every", self.log_every, 1, 1e9)
        if self.plan:  # which needs neither data nor a place
            return
        if not self.output:
            raise SettingsError("output is missing: name the folder of the run, --output DIR")
        if self.batch.tokens and self.objective.kind == "in_batch" and not self.objective.gradient_cache:
            raise SettingsError(
                "batch.tokens with objective.kind = 'in_batch' would give every micro-batch other negatives; "
                "turn on objective.gradient_cache, or leave batch.tokens out"
            )
        if bool(self.unlabelled.shards) == bool(self.labelled.file):
            given = "both are" if self.labelled.file else "neither is"
            raise SettingsError(
                f"give either unlabelled.shards (pretraining) or labelled.file (fine-tuning); {given} set"
            )
        longest = self.labelled.query_max_length + self.labelled.passage_max_length
        if self.unlabelled.shards:
            longest = 2 * self.unlabelled.longest
        if 0 < self.batch.tokens < longest:
            raise SettingsError(
                f"batch.tokens is {self.batch.tokens}, but a pair may have {longest} tokens; raise it to at least that"
            )
        if self.labelled.file and not self.init:
            raise SettingsError("fine-tuning begins from a checkpoint: give --init FOLDER-or-NAME")
