"""The engine over DeepSpeed ZeRO, and the only file that imports deepspeed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..errors import SettingsError, require
from ..objectives.sharded import part
from ..pairs import Packed
from .engine_state import (
    MOMENTS,
    State,
    full_state,
    load_plain_state,
    make_optimizer,
    missing,
    plain_state,
    updates,
    with_scale,
)
from .loss_scale import LossScale
from .schedule import OptimSettings

_PURPOSE = "training with a DeepSpeed file"
_ENDLESS = torch.tensor(math.inf)


def prepare_deepspeed() -> None:
    """Before the process group starts: keep DeepSpeed from compiling extensions that a CPU run does not need.

    init_distributed would build a shared-memory all-reduce for a minute the first time, in silence, and fail where
    there is no compiler; and without CUDA it would probe for every accelerator there is.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    library = require("deepspeed", "train", _PURPOSE)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        library.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class ZeroEngine:
    """DeepSpeed, ZeRO stages 0 to 3, with or without offload. See `engine.Engine` for what each method promises."""

    def __init__(
        self, module: nn.Module, optim: OptimSettings, config: Mapping[str, Any], scale: LossScale | None = None
    ) -> None:
        library = require("deepspeed", "train", _PURPOSE)
        self._deepspeed, self._utils = library, require("deepspeed.utils", "train", _PURPOSE)
        self._stage = config["zero_optimization"]["stage"]
        self._accumulation = int(config["gradient_accumulation_steps"])
        try:
            self._engine, self._optimizer, _, _ = library.initialize(
                model=module, optimizer=make_optimizer(module, optim), config=dict(config)
            )
        except (ValueError, AssertionError) as error:  # how its own checks of the configuration end
            raise SettingsError(f"DeepSpeed refuses the configuration: {error}") from error
        self.module, self.scale = self._engine.module, scale
        if self._stage > 0:  # else it warns of every overflow in its own words
            self._optimizer.loss_scaler.update_scale = lambda overflow: None
        self._tell_scale()

    def embed(self, packed: Packed) -> Tensor:
        """See `Engine`."""
        return self._engine(packed)  # type: ignore[no-any-return]

    def micro_batches(self, count: int) -> None:
        """See `Engine`."""
        self._accumulation = count

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Engine`. DeepSpeed would count micro-batches itself, by a number fixed when it starts."""
        self._engine.set_gradient_accumulation_boundary(last)
        if self._stage == 0 and self.scale is not None:  # at higher stages DeepSpeed multiplies, being told
            loss = loss * self.scale.value
        self._engine.backward(loss / self._accumulation, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._step_unsharded() if self._stage == 0 else self._step_sharded()
        if self.scale is None:
            return norm
        told = self.scale.observe(norm)
        self._tell_scale()
        return told

    def _step_sharded(self) -> float:
        self._engine.step()
        # of a gradient that is not finite, DeepSpeed says infinity, and has changed nothing
        return float(self._engine.get_global_grad_norm())

    def _step_unsharded(self) -> float:
        """DeepSpeed has averaged the gradients, and will clip them and no more; the rest is as in the plain engine."""
        parameters = list(self.module.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.scale is not None:
            torch._foreach_div_(gradients, self.scale.value)
        norm = float(nn.utils.get_total_norm(gradients))
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def discard(self) -> None:
        """See `Engine`. DeepSpeed's only way is its own at an overflow, so for one step it is told of one."""
        if self._stage == 0:
            self._engine.zero_grad()
            return
        method, told = ("_get_norm_groups", [_ENDLESS]) if self._stage == 3 else ("scaled_global_norm", _ENDLESS)
        setattr(self._optimizer, method, lambda *_, **__: told)
        try:
            self._engine.step()
        finally:
            delattr(self._optimizer, method)

    def _tell_scale(self) -> None:
        if self._stage > 0 and self.scale is not None:
            self._optimizer.override_loss_scale(self.scale.value)

    @contextlib.contextmanager
    def weights(self) -> Iterator[Mapping[str, Tensor]]:
        """See `Engine`. Under stage 3 the shards are gathered for the block."""
        parameters = dict(self.module.named_parameters())
        if self._stage < 3:
            yield parameters
        else:
            with self._deepspeed.zero.GatheredParameters(list(parameters.values())):
                yield parameters

    def shards(self) -> Mapping[str, Tensor]:
        """See `Engine`. Stage 3 has cut them already."""
        if self._stage < 3:
            rank, world = ranks.rank(), ranks.world_size()
            return {name: part(weight.detach(), rank, world) for name, weight in self.module.named_parameters()}
        local = self._utils.safe_get_local_fp32_param
        return {name: local(parameter).view(-1) for name, parameter in self.module.named_parameters()}

    def state(self) -> State:
        """See `Engine`. Every value is gathered from its shards, one parameter at a time."""
        if self._stage == 0:
            return with_scale(plain_state(self.module, self._optimizer), self.scale)
        stepped = any(self._inner().state.values())

        def gathered(parameter: Tensor) -> dict[str, Tensor | None]:
            whole = self._utils.safe_get_full_optimizer_state
            moments = {moment: whole(parameter, moment) if stepped else None for moment in MOMENTS}
            return {"weights": self._utils.safe_get_full_fp32_param(parameter), **moments}

        return with_scale(full_state(self.module, gathered), self.scale)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """See `Engine`."""
        taken = updates(state, steps, self.scale)
        self._tell_scale()
        if self._stage == 0:
            load_plain_state(self.module, self._optimizer, state, taken)
            return
        inner = self._inner()
        flats = [flat for group in inner.param_groups for flat in group["params"]]
        if self._stage == 3:
            flats = list(self._optimizer.fp32_partitioned_groups_flat)
        for flat in flats:  # torch makes these at the first step; a setter before it would write nowhere
            inner.state[flat] = {
                "step": torch.tensor(float(taken), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if self._stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.module.named_parameters():
            if name not in state["weights"]:
                raise missing(name)
            device = flats[0].device
            self._utils.safe_set_full_fp32_param(parameter, state["weights"][name].to(device))
            for moment in MOMENTS:
                self._utils.safe_set_full_optimizer_state(parameter, state[moment][name].to(device), moment)
            self._set_working_copy(parameter, state["weights"][name])  # the setter above writes only the master

    def _inner(self) -> Any:
        return self._optimizer.optimizer

    def _set_working_copy(self, parameter: Tensor, value: Tensor) -> None:
        if self._stage < 3:
            parameter.copy_(value)
        else:
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
