"""What every engine keeps alike: one optimiser, and its state in full by name, whatever lies sharded where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..errors import ArtifactError
from .loss_scale import LossScale
from .schedule import OptimSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
State = dict[str, dict[str, Tensor]]


def make_optimizer(module: nn.Module, optim: OptimSettings) -> torch.optim.AdamW:
    """torch's own AdamW: DeepSpeed's fused and CPU Adams are compiled on first use, for a minute and more."""
    return torch.optim.AdamW(
        module.parameters(),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def missing(name: str) -> ArtifactError:
    """The complaint about a state without the parameter `name`."""
    return ArtifactError(f"the train state holds nothing for {name!r}: it was made by another model")


def with_scale(state: State, scale: LossScale | None) -> State:
    """The state, with the loss scale as one more part where there is one; on rank 0, as all of it."""
    return state if scale is None or not ranks.is_main() else state | {"loss_scale": scale.state()}


def updates(state: Mapping[str, Mapping[str, Tensor]], steps: int, scale: LossScale | None) -> int:
    """How often the weights had changed in `steps` steps: fp16 skips some. The scale is taken from the state."""
    if scale is None:
        return steps
    scale.load_state(state.get("loss_scale", {}))
    return steps - scale.skipped


def full_state(module: nn.Module, values_of: Callable[[Tensor], Mapping[str, Tensor | None]]) -> State:
    """Every parameter's values by name, kept on rank 0 alone; every rank walks along, for a value may be gathered.

    A moment that is not there yet (no step was taken, or fp16 skipped it) is 0, as torch would make it.
    """
    state: State = {"weights": {}, **{moment: {} for moment in MOMENTS}}
    for name, parameter in module.named_parameters():
        values = values_of(parameter)
        if ranks.is_main():
            for kind in state:
                value = values[kind]
                value = torch.zeros_like(state["weights"][name]) if value is None else value.detach().float().cpu()
                state[kind][name] = value.clone()
    return state


def plain_state(module: nn.Module, optimizer: Any) -> State:
    """Of an optimiser that works on the whole parameters themselves."""
    inner = getattr(optimizer, "optimizer", optimizer)

    def held(parameter: Tensor) -> dict[str, Tensor | None]:
        return {"weights": parameter, **{moment: inner.state[parameter].get(moment) for moment in MOMENTS}}

    return full_state(module, held)


@torch.no_grad()
def load_plain_state(module: nn.Module, optimizer: Any, state: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
    """The reverse of `plain_state`, after `steps` updates."""
    inner = getattr(optimizer, "optimizer", optimizer)
    for name, parameter in module.named_parameters():
        if name not in state["weights"]:
            raise missing(name)
        parameter.copy_(state["weights"][name])
        inner.state[parameter] = {
            "step": torch.tensor(float(steps), device=parameter.device),
            **{moment: state[moment][name].to(parameter) for moment in MOMENTS},
        }
