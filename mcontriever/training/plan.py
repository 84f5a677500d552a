"""`--plan`: what a run would take, told before a GPU is asked for. Nothing is trained, downloaded or written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from .. import encoder
from . import ds_config, footprint, traffic
from .memory import FP32, Part, Placement
from .model_shape import ModelShape, config_of, require_shape
from .settings import TrainSettings

_HALF = 2  # bytes of bf16 and fp16
_WIRE = {"bf16": _HALF, "fp16": _HALF}


@dataclass(frozen=True)
class Work:
    """What one rank computes."""

    rows: int  # pairs in a step
    micro_batches: int
    query: float  # mean tokens
    passage: float

    @classmethod
    def of(cls, recipe: TrainSettings, world: int) -> Work:
        """From the recipe's batch and the lengths it allows."""
        query, passage = _lengths(recipe)
        rows, count = recipe.batch.rows_per_rank(world) * recipe.batch.accumulation, recipe.batch.accumulation
        if recipe.batch.tokens:
            count = min(rows, math.ceil(rows * (query + passage) / recipe.batch.tokens))
        return cls(rows, count, query, passage)

    @property
    def at_once(self) -> int:
        """Pairs of a micro-batch."""
        return math.ceil(self.rows / self.micro_batches)


@dataclass(frozen=True)
class Plan:
    """One recipe on so many GPUs."""

    recipe: TrainSettings
    shape: ModelShape
    placement: Placement
    work: Work
    wire: int  # bytes of a gradient's element under way

    @classmethod
    def of(cls, recipe: TrainSettings) -> Plan:
        """Everything that is wrong with the recipe or its DeepSpeed file is said here, as training would say it."""
        world = recipe.planning.gpus or int(os.environ.get("WORLD_SIZE", "1"))
        content = ds_config.read(recipe.deepspeed_config) if recipe.deepspeed_config else None
        if content is not None:
            ds_config.join(content, recipe, world)
        wire = _WIRE.get((content or {}).get("communication_data_type", "fp32"), FP32)
        work = Work.of(recipe, world)
        config = config_of(recipe)
        require_shape(recipe, config)
        return cls(recipe, ModelShape.of(config), Placement.of(content, world), work, wire)

    @property
    def moco(self) -> bool:
        """Whether there is a queue."""
        return self.recipe.objective.kind == "moco"

    def memory(self) -> list[Part]:
        """Part by part."""
        parts = self.placement.model_parts(self.shape)
        if self.moco:
            dimension = self.shape.config.hidden_size
            parts += self.placement.key_parts(self.shape, self.recipe.objective.queue_size, dimension)
        if self.recipe.precision != "fp32":
            parts.append(Part("weights cast to half precision", _HALF * self.shape.multiplied, estimate=True))
        tokens = self.work.at_once * (self.work.query + (0 if self.moco else self.work.passage))
        per_token = footprint.bytes_per_token(
            self.shape.config, self.recipe.precision, checkpointing=self.recipe.activation_checkpointing
        )
        scores = footprint.bytes_per_score(self.recipe.objective) * self._scores()
        return [
            *parts,
            Part(f"activations of {tokens:,.0f} tokens", tokens * per_token, estimate=True),
            Part("scores and their gradients", scores, estimate=True),
        ]

    def traffic(self) -> list[traffic.Message]:
        """What a rank sends in a step."""
        work = self.work
        return traffic.messages(
            self.shape,
            self.placement,
            moco=self.moco,
            rows=work.rows,
            micro_batches=work.micro_batches,
            wire=self.wire,
        )

    def operations(self) -> float:
        """Floating-point operations of a rank in a step: products of the encoder's layers, and of the scores."""
        again = 1 if self.recipe.activation_checkpointing else 0
        cached = 1 if self.recipe.objective.gradient_cache else 0  # texts are embedded twice
        query, passage = (
            encoder.flops(self.shape.config, torch.full((self.work.rows,), round(length)))
            for length in (self.work.query, self.work.passage)
        )
        backward = 3 + again + cached
        layers = query * backward + passage * (1 if self.moco else backward)
        scores = 6 * self._scores() * self.work.micro_batches * self.shape.config.hidden_size
        return float(layers + scores)

    def _scores(self) -> float:
        """Of a micro-batch; with the gradient cache, of the step."""
        settings, work = self.recipe.objective, self.work
        if self.moco:
            return work.at_once * (settings.queue_size + 1)
        rows = work.rows if settings.gradient_cache else work.at_once
        return rows * rows * self.placement.world

    def seconds(self) -> dict[str, float]:
        """Of a step, by what they go into; no overlap is reckoned with."""
        planning = self.recipe.planning
        sent = sum(message.bytes for message in self.traffic())
        return {
            "arithmetic": self.operations() / (planning.tflops * 1e12),
            "sending": sent / (planning.gbytes * 1e9) if planning.gbytes else 0.0,
            "updating": self.placement.updated_bytes(self.shape, moco=self.moco) / (planning.memory_gbytes * 1e9),
        }

    def lines(self) -> list[str]:
        """The whole plan in words."""
        return [*self._headline(), *self._memory_lines(), *self._queue_lines(), *self._traffic_lines(), *self._time()]

    def _headline(self) -> list[str]:
        config, work, world = self.shape.config, self.work, self.placement.world
        model = f"{config.model_type}, {config.num_hidden_layers} layers x {config.hidden_size}"
        micro = "one micro-batch" if work.micro_batches == 1 else f"{work.micro_batches} micro-batches"
        what = (
            f"{model}, {self.shape.weights / 1e6:.1f} M weights, {self.recipe.precision}, {self.recipe.objective.kind}"
        )
        lengths = f"{work.query:.0f} and {work.passage:.0f} tokens a text (*)"
        return [
            f"Plan: {what}; {self.placement.name} on {world} GPU{'s' * (world > 1)}",
            f"A step: {self.recipe.batch.size:,} pairs, {work.rows:,} a GPU in {micro}, {lengths}",
        ]

    def _memory_lines(self) -> list[str]:
        lines, everything = [], self.memory()
        for title, host in (("Memory of a GPU, at most", False), ("Memory of the machine for each GPU", True)):
            parts = [part for part in everything if part.host == host and part.bytes]
            if not parts:
                continue
            lines += ["", f"{title:<44}{'GiB':>9}"]
            lines += [_row(part.name + " (*)" * part.estimate, part.bytes / 2**30) for part in parts]
            total = sum(part.bytes for part in parts)
            lines.append(_row("sum", total / 2**30))
            if self.placement.sharded and not host:
                start = FP32 * self.shape.weights + sum(p.bytes for p in parts if p.name in ("key encoder", "queue"))
                lines.append(_row("while it starts, all weights being whole", start / 2**30))
                lines.append(_row("needed: the larger of the two", max(total, start) / 2**30))
        return lines

    def _queue_lines(self) -> list[str]:
        if not self.moco:
            return []
        keys, size = self.recipe.objective.queue_size, self.recipe.batch.size
        memory = keys * self.shape.config.hidden_size * FP32
        return ["", f"Queue: {keys:,} keys, {memory / 2**20:,.1f} MiB on every GPU: those of {keys / size:.1f} steps"]

    def _traffic_lines(self) -> list[str]:
        sent = self.traffic()
        if not sent:
            return ["", "Sent in a step: nothing, there is one GPU"]
        lines = ["", f"{'Sent by a GPU in a step':<44}{'GB':>9}{'times':>7}"]
        lines += [f"{_row(message.name, message.bytes / 1e9)}{message.times:>7}" for message in sent]
        return [*lines, _row("sum", sum(message.bytes for message in sent) / 1e9)]

    def _time(self) -> list[str]:
        planning, parts = self.recipe.planning, self.seconds()
        seconds = sum(parts.values())
        days = seconds * self.recipe.steps / 86_400
        network = f"{planning.gbytes:g} GB/s sent" if planning.gbytes else "sending not counted"
        memory = f"{planning.memory_gbytes:g} GB/s of its memory"
        memory += ", AdamW on the machine not counted" if self.placement.offloaded else ""
        speed = f"{planning.tflops:g} TFLOP/s a GPU, {network}, {memory} (*)"
        split = ", ".join(f"{name} {value:,.3f} s" for name, value in parts.items())
        return [
            "",
            f"Arithmetic of a step: {self.operations() / 1e12:,.3f} TFLOP a GPU",
            f"Time: at least {seconds:,.3f} s a step, {days:,.1f} days for {self.recipe.steps:,} steps: {split}",
            f"      at {speed}",
            "",
            "(*) is an estimate: lengths are means of what the recipe allows; activations and scores were measured on",
            "a narrow copy of the model on this CPU and scaled up, a GPU's attention keeps less; the allocator's waste",
            "and the CUDA context come on top. Speeds are settings, planning.tflops, .gbytes and .memory_gbytes;",
            "waiting for data, evaluating and saving are not counted.",
        ]


def _row(name: str, value: float) -> str:
    return f"  {name:<42}{value:>9,.3f}"


def _lengths(recipe: TrainSettings) -> tuple[float, float]:
    """Mean tokens of a query and of a passage; of labelled pairs, the most there may be."""
    if recipe.planning.tokens:
        return recipe.planning.tokens, recipe.planning.tokens
    if recipe.labelled.file:
        return recipe.labelled.query_max_length, recipe.labelled.passage_max_length
    crops = recipe.unlabelled
    mean = crops.window * (crops.crop_min + crops.crop_max) / 2 * (1 - crops.delete) + 2
    return mean, mean
