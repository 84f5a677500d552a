"""What turns a loss into a step: torch alone, or DeepSpeed ZeRO. The only file that imports deepspeed.

Both engines compute the same thing with the same optimiser (torch's AdamW) and give back the same state: full fp32
weights and moments by name, whatever lies sharded where. So a run may go on with another number of ranks or another
stage.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import ranks
from ..errors import ArtifactError, SettingsError, require
from ..pairs import Packed
from .schedule import OptimSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """Forward, backward, step, and the state in full."""

    module: nn.Module

    def embed(self, packed: Packed) -> Tensor:
        """Vectors (B, D) of packed token sequences, with gradient."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add one micro-batch's gradient; `last` marks the one before the step."""

    def step(self, learning_rate: float) -> float:
        """Average over ranks, clip, update; the norm of the gradient before clipping."""

    def weights(self) -> contextlib.AbstractContextManager[Mapping[str, Tensor]]:
        """The whole current weights by name, readable inside the block."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """`weights`, `exp_avg` and `exp_avg_sq` by name, fp32 on the CPU of rank 0; every rank must call."""

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Take back what `state` gave after `steps` steps; every rank calls with the same."""


def start_engine(
    module: nn.Module, optim: OptimSettings, *, accumulation: int, deepspeed: Mapping[str, Any] | None
) -> Engine:
    """A plain engine, or a DeepSpeed one where its (joined) configuration is given."""
    if deepspeed is None:
        return PlainEngine(module, optim, accumulation)
    return ZeroEngine(module, optim, deepspeed)


def prepare_deepspeed() -> None:
    """Before the process group starts: keep DeepSpeed from compiling extensions that a CPU run does not need.

    init_distributed would build a shared-memory all-reduce for a minute the first time, in silence, and fail where
    there is no compiler; and without CUDA it would probe for every accelerator there is.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    library = require("deepspeed", "train", "training with a DeepSpeed file")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        library.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _optimizer(module: nn.Module, optim: OptimSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        module.parameters(),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def _missing(name: str) -> ArtifactError:
    return ArtifactError(f"the train state holds nothing for {name!r}: it was made by another model")


class PlainEngine:
    """torch alone; over several ranks the gradients are averaged in one message."""

    def __init__(self, module: nn.Module, optim: OptimSettings, accumulation: int) -> None:
        self.module = module
        self._accumulation, self._clip = accumulation, optim.clip
        self._optimizer = _optimizer(module, optim)

    def embed(self, packed: Packed) -> Tensor:
        """See `Engine`."""
        return self.module(packed)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Engine`."""
        (loss / self._accumulation).backward()  # type: ignore[no-untyped-call]
        if last:
            ranks.average_([parameter.grad for parameter in self.module.parameters() if parameter.grad is not None])

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self._clip or float("inf"))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @contextlib.contextmanager
    def weights(self) -> Iterator[Mapping[str, Tensor]]:
        """See `Engine`."""
        yield dict(self.module.named_parameters())

    def state(self) -> dict[str, dict[str, Tensor]]:
        """See `Engine`."""
        return _plain_state(self.module, self._optimizer)

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """See `Engine`."""
        _load_plain_state(self.module, self._optimizer, state, steps)


class ZeroEngine:
    """DeepSpeed, ZeRO stages 0 to 3, with or without offload."""

    def __init__(self, module: nn.Module, optim: OptimSettings, config: Mapping[str, Any]) -> None:
        library = require("deepspeed", "train", "training with a DeepSpeed file")
        self._deepspeed, self._utils = library, require("deepspeed.utils", "train", "training with a DeepSpeed file")
        self._stage = config["zero_optimization"]["stage"]
        # torch's own optimiser: DeepSpeed's fused and CPU Adams are compiled on first use, for a minute and more
        try:
            self._engine, self._optimizer, _, _ = library.initialize(
                model=module, optimizer=_optimizer(module, optim), config=dict(config)
            )
        except (ValueError, AssertionError) as error:  # how its own checks of the configuration end
            raise SettingsError(f"DeepSpeed refuses the configuration: {error}") from error
        self.module = self._engine.module

    def embed(self, packed: Packed) -> Tensor:
        """See `Engine`."""
        return self._engine(packed)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `Engine`. DeepSpeed divides by the accumulation, and counts micro-batches by its own step()."""
        self._engine.backward(loss)
        if not last:
            self._engine.step()

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self._stage == 0:  # DeepSpeed keeps none for this stage; the gradients are averaged already
            gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if norm is None else norm
        return float(norm)

    @contextlib.contextmanager
    def weights(self) -> Iterator[Mapping[str, Tensor]]:
        """See `Engine`. Under stage 3 the shards are gathered for the block."""
        parameters = dict(self.module.named_parameters())
        if self._stage < 3:
            yield parameters
        else:
            with self._deepspeed.zero.GatheredParameters(list(parameters.values())):
                yield parameters

    def state(self) -> dict[str, dict[str, Tensor]]:
        """See `Engine`. Every value is gathered from its shards, one parameter at a time."""
        if self._stage == 0:
            return _plain_state(self.module, self._optimizer)

        def gathered(parameter: Tensor) -> dict[str, Tensor | None]:
            moments = {moment: self._utils.safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
            return {"weights": self._utils.safe_get_full_fp32_param(parameter), **moments}

        return _full_state(self.module, gathered)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """See `Engine`."""
        if self._stage == 0:
            _load_plain_state(self.module, self._optimizer, state, steps)
            return
        inner = self._optimizer.optimizer
        flats = [flat for group in inner.param_groups for flat in group["params"]]
        if self._stage == 3:
            flats = list(self._optimizer.fp32_partitioned_groups_flat)
        for flat in flats:  # torch makes these at the first step; a setter before it would write nowhere
            inner.state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if self._stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.module.named_parameters():
            if name not in state["weights"]:
                raise _missing(name)
            device = flats[0].device
            self._utils.safe_set_full_fp32_param(parameter, state["weights"][name].to(device))
            for moment in MOMENTS:
                self._utils.safe_set_full_optimizer_state(parameter, state[moment][name].to(device), moment)
            self._set_working_copy(parameter, state["weights"][name])  # the setter above writes only the master

    def _set_working_copy(self, parameter: Tensor, value: Tensor) -> None:
        if self._stage < 3:
            parameter.copy_(value)
        else:
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)


def _plain_state(module: nn.Module, optimizer: Any) -> dict[str, dict[str, Tensor]]:
    inner = getattr(optimizer, "optimizer", optimizer)

    def held(parameter: Tensor) -> dict[str, Tensor | None]:
        return {"weights": parameter, **{moment: inner.state[parameter].get(moment) for moment in MOMENTS}}

    return _full_state(module, held)


def _full_state(
    module: nn.Module, values_of: Callable[[Tensor], Mapping[str, Tensor | None]]
) -> dict[str, dict[str, Tensor]]:
    """Every parameter's values by name, kept on rank 0 alone; every rank walks along, for a value may be gathered."""
    state: dict[str, dict[str, Tensor]] = {"weights": {}, **{moment: {} for moment in MOMENTS}}
    for name, parameter in module.named_parameters():
        for kind, value in values_of(parameter).items():
            if value is not None and ranks.is_main():
                state[kind][name] = value.detach().float().cpu().clone()
    return state


@torch.no_grad()
def _load_plain_state(module: nn.Module, optimizer: Any, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
    inner = getattr(optimizer, "optimizer", optimizer)
    for name, parameter in module.named_parameters():
        if name not in state["weights"]:
            raise _missing(name)
        parameter.copy_(state["weights"][name])
        inner.state[parameter] = {
            "step": torch.tensor(float(steps), device=parameter.device),
            **{moment: state[moment][name].to(parameter) for moment in MOMENTS},
        }
