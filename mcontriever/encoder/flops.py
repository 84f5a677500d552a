"""How much arithmetic a batch is, so that speed can be told as a share of what the machine can do.

Counted are the products of matrices, a multiplication and an addition as two, as everybody counts them; what the rest
of a layer does is small beside them. Nothing is counted for padding, which does no work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def flops(config: Any, lengths: Iterable[int]) -> float:
    """A forward pass over packed sequences of these lengths; a forward and backward pass is three times as much."""
    lengths = [int(length) for length in lengths]
    hidden, inner = config.hidden_size, config.intermediate_size
    of_a_token = 2 * (4 * hidden * hidden + 2 * hidden * inner)  # queries, keys, values, output; up and down
    of_a_square = 4 * hidden  # scores and weighted sum, over all heads
    squares = sum(length * length for length in lengths)
    return float(config.num_hidden_layers * (of_a_token * sum(lengths) + of_a_square * squares))
