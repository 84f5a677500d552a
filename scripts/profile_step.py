"""Where a training step's time goes, by part: what stands between its speed and that of its matrix products alone.

    python scripts/profile_step.py                     the model of `make bench`, bf16, on the CPU
    python scripts/profile_step.py --gpu --layers 12 --hidden 768 --heads 12 --words 250002

Parts are told from the names of torch's operators. Work that has no name of its own (views, allocations, Python) is
what remains of the step's time, and is listed as such. Recording itself costs a few per cent.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_common import BenchSettings  # type: ignore[import-not-found]  # scripts/ is no package
from bench_training import Ours, crops, make, queue_of  # type: ignore[import-not-found]
from torch.profiler import ProfilerActivity, profile

from mcontriever import settings
from mcontriever.errors import run_command

# The first that fits counts.
PARTS = {
    "matrix products": r"linear_pointwise|::(add)?mm$|::bmm$|::linear|reorder|gemm|cutlass|nvjet",
    "attention": r"attention|attn|flash|fmha",
    "normalisation": r"layer_norm",
    "activation": r"gelu",
    "dropout masks": r"random_|bernoulli|dropout|::ge$|::where",
    "optimizer": r"fused_adam|multi_tensor_apply|FusedOptimizer",
    "momentum update": r"foreach_lerp|foreach_copy|::lerp",
    "embedding": r"embedding|index_select|index_put",
    "loss": r"softmax|logsumexp|nll_loss|cross_entropy",
    "copies and casts": r"copy_|::cat$|::to$|::_to_copy|Memcpy|contiguous|clone",
    "sums and elementwise": r"::(add|sub|mul|div|sum|neg|fill|zero|mean|norm)_?$|_foreach|segment_reduce|elementwise",
}


@dataclass(frozen=True, kw_only=True)
class ProfileSettings(BenchSettings):  # type: ignore[misc]
    """Profile a step of MoCo by part."""

    precision: str = "bf16"
    """fp32 or bf16"""
    batch: int = 64
    """pairs of a batch"""
    steps: int = 3
    """steps that are recorded, after one that is not"""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.one_of("precision", self.precision, ("fp32", "bf16"))
        settings.in_range("steps", self.steps, 1, 1000)
        settings.in_range("batch", self.batch, 1, 1_000_000)


def by_part(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds of each part, from operators' names and their own seconds."""
    sums: dict[str, float] = {}
    for name, seconds in events:
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "other operators")
        sums[part] = sums.get(part, 0.0) + seconds
    return sums


def main(argv: list[str]) -> dict[str, float]:
    """Record, and print the table."""
    asked = settings.parse(ProfileSettings, argv, prog="scripts/profile_step.py")
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        batches = crops(asked, Path(folder), count=asked.steps + 1, pairs=asked.batch)
        ours = Ours(make(asked, Path(folder), dropout=0.1), queue_of(asked), asked.precision)
    ours.step(batches[0])
    activity = ProfilerActivity.CUDA if asked.gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as recorded:
        began = time.perf_counter()  # as the recording counts: waiting for a busy machine is in both
        for batch in batches[1:]:
            ours.step(batch)
        if asked.gpu:
            torch.cuda.synchronize()
        whole = time.perf_counter() - began
    parts = by_part((event.key, _own_seconds(event, asked.gpu)) for event in recorded.key_averages())
    parts["what has no name: Python, views, waiting"] = max(0.0, whole - sum(parts.values()))
    sys.stdout.write(f"{whole / asked.steps:.3f} s a step of {asked.batch} pairs, {asked.precision}\n")
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{part:<42} {seconds / asked.steps:8.3f} s {seconds / whole:6.1%}\n")
    return parts


def _own_seconds(event: Any, gpu: bool) -> float:
    return float(event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6


if __name__ == "__main__":
    sys.exit(run_command(main))
