"""What watches a run, opened and closed together: the bar, the metrics, the sinks, and the peak they compare with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .. import artifact, progress, ranks, settings
from . import peak
from .engine import Engine
from .metrics import Metrics, cut
from .settings import TrainSettings
from .sinks import Fanout, Sink, open_sinks

RECIPE = "recipe.toml"  # what the newest start of the run was asked for
_SILENCE = 60.0  # seconds without a line of metrics after which the bar says where things stand


@contextlib.contextmanager
def watching(recipe: TrainSettings, config: Any, engine: Engine, done: int, device: torch.device) -> Iterator[Metrics]:
    """The metrics of a run of an encoder of `config` that goes on after `done` steps; every rank calls."""
    output, sinks = Path(recipe.output), list[Sink]()

    def prepare() -> None:
        cut(output, done)
        artifact.write_text(output / RECIPE, settings.dump(recipe))
        sinks.extend(open_sinks(recipe.logging, output, done, dataclasses.asdict(recipe)))

    ranks.on_main(prepare)
    work, fastest = None, 0.0
    if recipe.logging.gemm_share:
        work = peak.work_of(config, recipe.objective.kind)
        fastest = 1e12 * recipe.logging.gemm_tflops or peak.measure(device, recipe.precision)
    shown = ranks.is_main()
    with (
        contextlib.closing(Fanout(sinks)) as fanout,
        progress.bar("Training", recipe.steps, "steps", done=done, shown=shown, line_seconds=_SILENCE) as bar,
    ):
        yield Metrics(
            output,
            every=recipe.log_every,
            steps=recipe.steps,
            done=done,
            bar=bar,
            sinks=fanout,
            work=work,
            peak=fastest,
            skips=lambda: engine.scale.skipped if engine.scale else 0,
            collapse=recipe.guard.collapse,
            device=device,
        )
