"""What turns a loss into a step: torch alone, here, or DeepSpeed ZeRO (`zero_engine.py`).

Both engines compute the same thing with the same optimiser (torch's AdamW) and give back the same state: full fp32
weights and moments by name, whatever lies sharded where. So a run may go on with another number of ranks or another
stage.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import ranks
from ..objectives.sharded import part
from ..pairs import Packed
from .engine_state import State, load_plain_state, make_optimizer, plain_state, updates, with_scale
from .loss_scale import LossScale
from .schedule import OptimSettings
from .zero_engine import ZeroEngine


class Engine(Protocol):
    """Forward, backward, step, and the state in full."""

    module: nn.Module
    scale: LossScale | None  # fp16 only

    def embed(self, packed: Packed) -> Tensor:
        """Vectors (B, D) of packed token sequences, with gradient. Every `backward` needs one of its own before it."""

    def micro_batches(self, count: int) -> None:
        """How many times `backward` will be called for the step that begins; the gradient is their mean."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add one micro-batch's gradient; `last` marks the one before the step."""

    def step(self, learning_rate: float) -> float:
        """Average over ranks, clip, update; the norm of the gradient before clipping.

        A gradient that is not finite changes nothing. Under fp16 the scale is then lowered and 0 given back, as long
        as it can be lowered.
        """

    def discard(self) -> None:
        """In place of `step`: let go of the gradient, and change nothing."""

    def weights(self) -> contextlib.AbstractContextManager[Mapping[str, Tensor]]:
        """The whole current weights by name, readable inside the block."""

    def shards(self) -> Mapping[str, Tensor]:
        """This rank's part of each current weight by name, cut as `objectives.sharded.part` cuts; nothing is sent."""

    def state(self) -> State:
        """`weights`, `exp_avg`, `exp_avg_sq` by name (fp16: `loss_scale`), on the CPU of rank 0; every rank calls."""

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Take back what `state` gave after `steps` steps; every rank calls with the same."""


def start_engine(
    module: nn.Module,
    optim: OptimSettings,
    *,
    accumulation: int,
    deepspeed: Mapping[str, Any] | None,
    precision: str = "fp32",
) -> Engine:
    """A plain engine, or a DeepSpeed one where its (joined) configuration is given."""
    scale = LossScale() if precision == "fp16" else None
    if deepspeed is None:
        return PlainEngine(module, optim, accumulation, scale)
    return ZeroEngine(module, optim, deepspeed, scale)


class PlainEngine:
    """torch alone; over several ranks the gradients are averaged in one message."""

    def __init__(
        self, module: nn.Module, optim: OptimSettings, accumulation: int, scale: LossScale | None = None
    ) -> None:
        self.module, self.scale = module, scale
        self._accumulation, self._clip = accumulation, optim.clip
        self._optimizer = make_optimizer(module, optim)

    def embed(self, packed: Packed) -> Tensor:
        """See `Engine`."""
        return self.module(packed)  # type: ignore[no-any-return]

    def micro_batches(self, count: int) -> None:
        """See `Engine`."""
        self._accumulation = count

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Engine`."""
        scaled = loss if self.scale is None else loss * self.scale.value
        (scaled / self._accumulation).backward()  # type: ignore[no-untyped-call]
        if last:
            ranks.average_([parameter.grad for parameter in self.module.parameters() if parameter.grad is not None])

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        parameters = list(self.module.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.scale is not None:
            torch._foreach_div_(gradients, self.scale.value)
        norm = nn.utils.get_total_norm(gradients)
        if math.isfinite(norm):
            nn.utils.clip_grads_with_norm_(parameters, self._clip or float("inf"), norm)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm) if self.scale is None else self.scale.observe(float(norm))

    def discard(self) -> None:
        """See `Engine`."""
        self._optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def weights(self) -> Iterator[Mapping[str, Tensor]]:
        """See `Engine`."""
        yield dict(self.module.named_parameters())

    def shards(self) -> Mapping[str, Tensor]:
        """See `Engine`."""
        rank, world = ranks.rank(), ranks.world_size()
        return {name: part(weight.detach(), rank, world) for name, weight in self.module.named_parameters()}

    def state(self) -> State:
        """See `Engine`."""
        return with_scale(plain_state(self.module, self._optimizer), self.scale)

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """See `Engine`."""
        load_plain_state(self.module, self._optimizer, state, updates(state, steps, self.scale))
