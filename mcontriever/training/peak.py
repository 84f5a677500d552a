"""How much of the machine training uses: the arithmetic a step needs, against the fastest this machine multiplies.

What a step needs is the matrix products of the encoder (`encoder.flops`): once for a forward pass and twice more for
its backward pass, over real tokens only. What is done again to save memory (activation checkpointing, gradient
caching) is not counted, nor the losses, the optimiser and the average of the weights, and the time is that of whole
steps, waiting for data included: all of that makes the share smaller.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .. import encoder, ranks
from ..pairs import PairBatch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST = {"cpu": 2048, "cuda": 8192}  # 2048: 48 MB of fp32, which must not show in a run's peak memory


def work_of(config: Any, kind: str) -> Callable[[PairBatch], float]:
    """The floating-point operations that one batch of pairs needs, objective `kind` being in_batch or moco.

    Keys of the momentum encoder have no backward pass: they cost one forward pass where queries cost three.
    """
    passage = 3 if kind == "in_batch" else 1

    def work(batch: PairBatch) -> float:
        queries, passages = (side.lengths.tolist() for side in (batch.query, batch.passage))
        return 3 * encoder.flops(config, queries) + passage * encoder.flops(config, passages)

    return work


def measure(device: torch.device, precision: str, seconds: float = 0.5) -> float:
    """The most floating-point operations a second of a matrix product here, this rank's threads and precision.

    All ranks measure at the same time, for they also train at the same time. Products grow until the time is used up.
    """
    ranks.barrier()
    generator = torch.Generator(device).manual_seed(0)  # its own, so that nothing else is drawn otherwise
    ends = time.perf_counter() + seconds
    best, size, took = 0.0, 256, 0.0
    while (
        size <= _LARGEST[device.type] and time.perf_counter() + 40 * took < ends
    ):  # five products, each eight times as long
        left, right = torch.randn(2, size, size, generator=generator, device=device).to(DTYPES[precision])
        product = left @ right  # the first call chooses kernels and takes memory
        took = min(_timed(left, right, product) for _ in range(3))
        best = max(best, 2 * size**3 / took)
        size *= 2
    return best


def _timed(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor) -> float:
    """Seconds of one product, of so many in a row that a GPU's launches do not count."""
    count = 10 if left.device.type == "cuda" else 1
    _wait_for(left.device)
    began = time.perf_counter()
    for _ in range(count):
        torch.mm(left, right, out=product)
    _wait_for(left.device)
    return (time.perf_counter() - began) / count


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
