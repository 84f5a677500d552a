"""The published implementation beside ours: the same model, weights, queue and crops; losses and pairs a second.

    git clone https://github.com/facebookresearch/contriever
    python scripts/reference.py --reference contriever

First both train for a few steps without dropout in fp32, where every loss must be the same but for rounding. Then both
train as they come, turn about, and are timed: the published code with its dropout of 0.1, ours with that on hidden
states alone; ours in fp32, and at its best, in bf16.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import clock_of, measure, table  # type: ignore[import-not-found]  # scripts/ is no package
from bench_common import BenchSettings  # type: ignore[import-not-found]
from bench_training import crops, losses_beside, published  # type: ignore[import-not-found]

from mcontriever import settings
from mcontriever.errors import SettingsError, run_command


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings(BenchSettings):  # type: ignore[misc]
    """The published implementation beside ours."""

    steps: int = 10
    """steps in which their losses are compared"""


def main(argv: list[str]) -> list[tuple[float, float]]:
    """Compare, time, print; the losses, published and ours."""
    asked = settings.parse(ReferenceSettings, argv, prog="scripts/reference.py")
    if not asked.reference:
        raise SettingsError("reference is missing: give a clone of the published code, --reference FOLDER")
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batches = crops(asked, folder, count=asked.steps)
        losses: list[tuple[float, float]] = losses_beside(asked, folder, batches)
        sys.stdout.write("step   published        ours  difference\n")
        for step, (theirs, ours) in enumerate(losses, start=1):
            sys.stdout.write(f"{step:4}  {theirs:10.6f}  {ours:10.6f}  {ours - theirs:10.1e}\n")
        cases = [published(asked, folder, ours=precision) for precision in ("fp32", "bf16")]
        results = [measure(case, 3 if asked.quick else asked.rounds, clock=clock_of(asked)) for case in cases]
    sys.stdout.write(table(results, [case.peer_name for case in cases]) + "\n")
    return losses


if __name__ == "__main__":
    sys.exit(run_command(main))
