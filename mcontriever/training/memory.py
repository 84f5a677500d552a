"""What lies where: bytes a GPU holds at most in a step, part by part, for each engine and ZeRO stage.

The rules were read off DeepSpeed 0.19 with fp32 weights and are held by a test that adds up the tensors really there.
The parts do not all reach their largest at the same moment, so their sum is an upper bound. Letters: W ranks, K keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .model_shape import ModelShape

FP32, INT64 = 4, 8
_UNSET = 1_000_000_000  # what DeepSpeed takes for the distances that a file does not give
# passes over an element: norm 1, clipping 2, weight 2, gradient 1, two moments 4; key 2, weight 1
_ADAM, _AVERAGE = 10, 3
_BUCKET, _PERSISTENT = 500_000_000, 100_000


@dataclass(frozen=True)
class Part:
    """Some bytes on a GPU, or (`host`) in the memory of its machine."""

    name: str
    bytes: float
    host: bool = False
    estimate: bool = False


@dataclass(frozen=True)
class Placement:
    """What a DeepSpeed file says that matters here; without a file, the plain engine."""

    stage: int | None
    world: int
    zero: Mapping[str, Any]

    @classmethod
    def of(cls, content: Mapping[str, Any] | None, world: int) -> Placement:
        """Of a file's content, as `ds_config.read` gives it."""
        if content is None:
            return cls(None, world, {})
        zero = content.get("zero_optimization", {})
        return cls(int(zero.get("stage", 0)), world, zero)

    @property
    def name(self) -> str:
        """In words."""
        if self.stage is None:
            return "plain engine"
        offloaded = [what for what in ("optimizer", "param") if self._offloaded(what)]
        return f"ZeRO-{self.stage}" + (f" with {' and '.join(offloaded)} offload" if offloaded else "")

    @property
    def sharded(self) -> bool:
        """Whether weights, and with them the key encoder, are spread over the ranks."""
        return self.stage == 3

    def share(self, shape: ModelShape) -> int:
        """Elements of what ZeRO cuts into W: under stage 3 each weight by itself, below all of them together."""
        if self.sharded:
            return sum(-(-size // self.world) for size in shape.sizes)
        return -(-shape.weights // self.world)

    def model_parts(self, shape: ModelShape) -> list[Part]:
        """Weights, master, moments, gradients and what DeepSpeed needs beside them."""
        whole, share, stage = FP32 * shape.weights, FP32 * self.share(shape), self.stage or 0
        away, weights_away = self._offloaded("optimizer"), self._offloaded("param")
        if stage == 0:
            average = whole if self.stage is not None or self.world > 1 else 0  # gradients flattened for one message
            return [
                Part("weights", whole),
                Part("moments", 2 * whole),
                Part("gradients", whole),
                Part("message buffers", average if self.world > 1 else 0),
            ]
        parts = [Part("weights", share if self.sharded else whole, host=weights_away)]
        parts.append(Part("master weights", share, host=away))  # a copy, though the weights are fp32 themselves
        parts += [Part("moments", 2 * share, host=away), Part("gradients", self._gradients(whole, share), host=away)]
        buckets = 2 if self.zero.get("overlap_comm") and not self.sharded else 1
        if self.zero.get("contiguous_gradients", True):
            parts.append(Part("reduce buckets", buckets * FP32 * self._number("reduce_bucket_size", _BUCKET)))
        if self.sharded:
            parts.append(Part("gathered weights", FP32 * self._gathered(shape), estimate=True))
        return parts

    def key_parts(self, shape: ModelShape, queue: int, dimension: int) -> list[Part]:
        """The momentum encoder and the queue of its keys."""
        keys = FP32 * (self.share(shape) if self.sharded else shape.weights)
        parts = [Part("key encoder", keys), Part("queue", queue * (FP32 * dimension + INT64))]
        if self.sharded:
            # a layer's weights are put together from what was gathered, a table is used as it came
            gathered = FP32 * max(2 * shape.layer, shape.table)
            parts.append(Part("key encoder's gathered layer", gathered, estimate=True))
        return parts

    def updated_bytes(self, shape: ModelShape, *, moco: bool) -> float:
        """Read and written at least in a step's update, on the GPU: nothing of an optimiser that is offloaded."""
        share = FP32 * self.share(shape)
        own = share if self.stage else FP32 * shape.weights
        adam = 0 if self.offloaded else _ADAM * own
        return adam + (_AVERAGE * (share if self.sharded else FP32 * shape.weights) if moco else 0)

    @property
    def offloaded(self) -> bool:
        """Whether the optimiser works in the machine's memory."""
        return self._offloaded("optimizer")

    def _gradients(self, whole: int, share: int) -> int:
        """Stage 1 keeps whole gradients until the last micro-batch; the others reduce each as it comes."""
        return whole + share if self.stage == 1 else share

    def _gathered(self, shape: ModelShape) -> int:
        """Small weights stay whole; of the others what is in use, or fetched ahead, or kept for its next use.

        DeepSpeed fetches ahead until so many are live: stage3_prefetch_bucket_size bounds one message, not their sum.
        """
        threshold = self._number("stage3_param_persistence_threshold", _PERSISTENT)
        persistent = sum(size for size in shape.sizes if size <= threshold)
        live = max(shape.layer, shape.table, self._number("stage3_max_live_parameters", _UNSET))
        return min(shape.weights, persistent + live + self._number("stage3_max_reuse_distance", _UNSET))

    def _number(self, key: str, otherwise: int) -> int:
        return int(self.zero.get(key, otherwise))

    def _offloaded(self, what: str) -> bool:
        return bool(self.zero.get(f"offload_{what}", {}).get("device", "none") != "none")
