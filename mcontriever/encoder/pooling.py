"""From the tokens of packed sequences to one vector a sequence, as a contract says.

Letters: B sequences, T tokens of all of them together, D dimensions of a token, E of a projected vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..pairs import Packed


def pool(hidden: Tensor, packed: Packed, pooling: str) -> Tensor:
    """(T, D) of packed tokens to (B, D) in fp32: their mean, or their first ("cls")."""
    if pooling == "cls":
        return hidden[packed.cu_seqlens[:-1]].float()
    # not index_add_, whose sums on a GPU come out in another order every time
    # unsafe: no look at the lengths, for which a GPU would be waited for
    return torch.segment_reduce(hidden.float(), "mean", lengths=packed.lengths, axis=0, unsafe=True)


def project(vectors: Tensor, projection: nn.Linear, activation: str) -> Tensor:
    """(B, D) to (B, E) in fp32: a linear map and what follows it, tanh or identity (nothing)."""
    projected: Tensor = projection(vectors.to(projection.weight.dtype)).float()
    return torch.tanh(projected) if activation == "tanh" else projected
