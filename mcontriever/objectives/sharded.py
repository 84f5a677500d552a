"""The momentum encoder spread over the ranks: each holds a W-th of every weight, none a whole copy.

The average is then local, without a message, because the engine cuts the query encoder's weights at the same places
(ZeRO-3 cuts so). For a forward pass the weights of one layer are gathered, used and dropped. Letters: W ranks, n
elements of a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .momentum import Followed, MomentumEncoder, average_towards


def part(weight: Tensor, rank: int, world: int) -> Tensor:
    """Rank's part of a weight, flat: ⌈n/W⌉ elements of its own, the last filled up with zeros."""
    size = -(-weight.numel() // world)
    own = weight.reshape(-1)[rank * size : (rank + 1) * size]
    return own if len(own) == size else torch.cat([own, own.new_zeros(size - len(own))])


class ShardedMomentumEncoder:
    """The face of `MomentumEncoder`, of which each rank holds a W-th. What calls `module` must be called by all ranks.

    `gather` puts all ranks' equal flat tensors one after another, (n,) to (W*n,).
    """

    def __init__(
        self, encoder: nn.Module, momentum: float, *, rank: int, world: int, gather: Callable[[Tensor], Tensor]
    ) -> None:
        self.momentum = momentum
        self.most_gathered = 0  # elements; the largest layer
        self._rank, self._world, self._gather = rank, world, gather
        self._shapes = {name: weight.shape for name, weight in encoder.named_parameters()}
        self._parts = {
            name: part(weight.detach().float(), rank, world).clone() for name, weight in encoder.named_parameters()
        }
        # Copied without its weights, so that not even for a moment there is a second whole set of them.
        empty: dict[int, Any] = {id(weight): _nothing_like(weight) for weight in encoder.parameters()}
        self.module: nn.Module = copy.deepcopy(encoder, empty).eval()
        names = {id(weight): name for name, weight in self.module.named_parameters()}
        for unit, weights in _units(self.module):
            named = [(names[id(weight)], weight) for weight in weights]
            unit.register_forward_pre_hook(_calling(self._fill, named))
            unit.register_forward_hook(_calling(self._drop, named), always_call=True)

    def follow(self, query: Followed) -> None:
        """One step towards the weights that `query` trains."""
        self.update(query.shards())

    @torch.no_grad()
    def update(self, shards: Mapping[str, Tensor]) -> None:
        """One step towards this rank's parts of the query encoder's weights."""
        average_towards(self._parts, shards, self.momentum)

    def held(self) -> int:
        """Elements this rank holds between two forward passes."""
        return sum(kept.numel() for kept in [*self._parts.values(), *self.module.parameters()])

    def state_dict(self) -> dict[str, Tensor]:
        """The whole weights by name, fp32 on the CPU of rank 0 and nothing elsewhere; every rank must call."""
        state: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            whole = self._gather(self._parts[name])
            if self._rank == 0:
                state[name] = whole[: shape.numel()].view(shape).cpu()
        return state

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; every rank calls with the whole."""
        for name, own in self._parts.items():
            own.copy_(part(weights[name], self._rank, self._world))

    def _fill(self, named: list[tuple[str, nn.Parameter]]) -> None:
        """One message a layer; rank after rank comes back, so each weight is put together from its W parts."""
        sizes = [self._parts[name].numel() for name, _ in named]
        own = torch.cat([self._parts[name] for name, _ in named])
        everyone = self._gather(own).view(self._world, -1)  # (W, sum of the parts)
        self.most_gathered = max(self.most_gathered, everyone.numel())
        for (name, weight), columns in zip(named, everyone.split(sizes, dim=1), strict=True):
            shape = self._shapes[name]
            weight.data = columns.reshape(-1)[: shape.numel()].view(shape)

    @staticmethod
    def _drop(named: list[tuple[str, nn.Parameter]]) -> None:
        for _, weight in named:
            weight.data = weight.data.new_empty(0)


KeyEncoder = MomentumEncoder | ShardedMomentumEncoder


def _nothing_like(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(0, device=weight.device), requires_grad=False)


def _units(module: nn.Module, inside: bool = False) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """What is gathered together: a transformer layer (a member of a ModuleList), or else a module's own weights."""
    if inside:
        yield module, list(module.parameters())
        return
    own = list(module.parameters(recurse=False))
    if own:
        yield module, own
    for child in module.children():
        yield from _units(child, inside=isinstance(module, nn.ModuleList))


def _calling(function: Callable[[Any], None], named: Any) -> Callable[..., None]:
    return lambda *_: function(named)
