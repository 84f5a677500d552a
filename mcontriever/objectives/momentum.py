"""MoCo's memory: the momentum encoder and the queue of its keys.

Both live outside the training engine and in fp32: in bf16 an average with m = 0.9995 does not move at all, because the
step is smaller than the spacing of the numbers, and an engine in bf16 would cast the queue along. Letters: K keys in
the queue, D dimensions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn


class Followed(Protocol):
    """Whose weights the momentum encoder follows: the training engine."""

    def weights(self) -> contextlib.AbstractContextManager[Mapping[str, Tensor]]:
        """The whole current weights by name, readable inside the block."""

    def shards(self) -> Mapping[str, Tensor]:
        """This rank's part of each current weight, cut as `sharded.part` cuts."""


class MomentumEncoder:
    """θ_k ← m θ_k + (1 − m) θ_q, parameter by parameter, by name."""

    def __init__(self, encoder: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.module = copy.deepcopy(encoder).float().requires_grad_(False).eval()

    def follow(self, query: Followed) -> None:
        """One step towards the weights that `query` trains."""
        with query.weights() as weights:
            self.update(weights)

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """One step towards the query encoder's `weights` (named as in its `named_parameters`)."""
        average_towards(dict(self.module.named_parameters()), weights, self.momentum)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by name, fp32."""
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        for name, parameter in self.module.named_parameters():
            parameter.copy_(weights[name])


def average_towards(keys: Mapping[str, Tensor], queries: Mapping[str, Tensor], momentum: float) -> None:
    """The one formula, in place, for whole tensors as for shards of them."""
    if keys.keys() != queries.keys():
        raise ValueError(f"query and key encoder differ in {sorted(keys.keys() ^ queries.keys())[:3]}")
    towards = [queries[name].detach().to(key.dtype) for name, key in keys.items()]
    torch._foreach_lerp_(list(keys.values()), towards, 1.0 - momentum)


class KeyQueue:
    """The last K keys, oldest overwritten first, each with the group (article or document) it came from."""

    EMPTY = -1

    def __init__(self, size: int, dimension: int, device: torch.device | str = "cpu") -> None:
        self.keys = torch.zeros(size, dimension, device=device)  # (K, D)
        self.groups = torch.full((size,), self.EMPTY, dtype=torch.long, device=device)  # (K,)
        self.pointer = 0  # the slot written next

    @torch.no_grad()
    def enqueue(self, keys: Tensor, groups: Tensor) -> None:
        """Append keys in order. Any number: K need not be a multiple of the batch, nor larger than it."""
        size = len(self.keys)
        end = self.pointer + len(keys)
        keys, groups = keys[-size:], groups[-size:]
        slots = torch.arange(end - len(keys), end, device=self.keys.device) % size
        self.keys[slots] = keys.detach().to(self.keys.dtype)
        self.groups[slots] = groups
        self.pointer = end % size

    def state_dict(self) -> dict[str, Tensor]:
        """Keys, groups and the pointer."""
        return {"keys": self.keys, "groups": self.groups, "pointer": torch.tensor(self.pointer)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.keys.copy_(state["keys"])
        self.groups.copy_(state["groups"])
        self.pointer = int(state["pointer"])
