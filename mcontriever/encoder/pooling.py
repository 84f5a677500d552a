"""From the tokens of sequences to one vector a sequence, as a contract says.

Letters: B sequences, T tokens of all of them together, S of the longest, D dimensions of a token, E of a projected
vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pairs import Packed
from .contract import Contract


def pool(hidden: Tensor, packed: Packed, pooling: str) -> Tensor:
    """(T, D) of packed tokens to (B, D) in fp32: their mean, or their first ("cls")."""
    if pooling == "cls":
        return hidden[packed.cu_seqlens[:-1]].float()
    # not index_add_, whose sums on a GPU come out in another order every time
    # unsafe: no look at the lengths, for which a GPU would be waited for
    return torch.segment_reduce(hidden.float(), "mean", lengths=packed.lengths, axis=0, unsafe=True)


def pool_padded(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """As `pool`, of a padded batch (B, S, D) under a mask (B, S): for other software's models."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def finish(vectors: Tensor, projection: nn.Module | None, said: Contract) -> Tensor:
    """What follows pooling: (B, D) to (B, E), projected and brought to length one where the contract says so."""
    if projection is not None:
        vectors = project(vectors, projection, said.projection)
    return F.normalize(vectors, dim=-1) if said.normalise else vectors


def project(vectors: Tensor, projection: nn.Module, activation: str) -> Tensor:
    """(B, D) to (B, E) in fp32: a linear map and what follows it, tanh or identity (nothing)."""
    projected: Tensor = projection(vectors.to(next(projection.parameters()).dtype)).float()
    return torch.tanh(projected) if activation == "tanh" else projected
