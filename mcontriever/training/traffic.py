"""Bytes a rank sends in one step, by what they are for, and by ring collectives. Letters: W ranks, A micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from .memory import FP32, INT64, Placement
from .model_shape import ModelShape


@dataclass(frozen=True)
class Message:
    """One kind of collective: how often in a step, and what a rank sends in all of them."""

    name: str
    times: int
    bytes: float


def messages(
    shape: ModelShape, placement: Placement, *, moco: bool, rows: int, micro_batches: int, wire: int = FP32
) -> list[Message]:
    """All but the few numbers that are logged. `rows` a rank has in a step; a gradient element takes `wire` bytes."""
    world, weights = placement.world, FP32 * shape.weights
    gradients, one_way = wire * shape.weights, (world - 1) / world  # of what is reduced or gathered
    found = []
    if placement.stage in (None, 0):
        found.append(Message("all-reduce of gradients", 1, 2 * one_way * gradients))
    else:
        times = 1 if placement.stage == 1 else micro_batches
        found.append(Message("reduce-scatter of gradients", times, times * one_way * gradients))
    if placement.stage in (1, 2):
        found.append(Message("all-gather of new weights", 1, one_way * weights))
    if placement.sharded:
        times = 2 * micro_batches  # forward and backward
        found.append(Message("all-gather of weights", times, times * one_way * weights))
        if moco:
            found.append(Message("all-gather of key encoder", micro_batches, micro_batches * one_way * weights))
    vectors, numbers = rows * FP32 * shape.config.hidden_size, rows * INT64
    if moco:
        found.append(Message("all-gather of keys", 1, (world - 1) * (vectors + numbers)))
    else:
        found.append(Message("all-gather of passages", micro_batches, (world - 1) * (vectors + numbers)))
        found.append(Message("all-reduce of passages' gradients", micro_batches, 2 * (world - 1) * vectors))
    return found if world > 1 else []
