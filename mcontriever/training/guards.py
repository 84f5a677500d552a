"""Stops a run, or passes over a step, before a loss that is no number or that leaps can reach the weights.

The loss is looked at between the backward pass and the update, the gradient's norm by the engine itself; so whichever
it is, weights, moments, momentum encoder and queue stay as they were. All ranks see the same numbers and decide alike.
Letters: W ranks.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import artifact, ranks
from ..corpus import Tokenizer
from ..errors import McontrieverError
from ..pairs import PairBatch
from .opening import Pairs
from .settings import TrainSettings
from .step import StepResult

KIND = "bad batch"


class BadStep(McontrieverError):
    """The run cannot go on. Steps are functions of their number: started again, it would come to the same end."""

    exit_code = 65  # EX_DATAERR of sysexits.h


class Guard:
    """Judges every step of one run. `accepts` is for `train_step`, `passes` for what comes of it."""

    def __init__(self, recipe: TrainSettings, pairs: Pairs, tokenizer: Tokenizer) -> None:
        self._recipe, self._settings, self._pairs, self._tokenizer = recipe, recipe.guard, pairs, tokenizer
        self._losses: deque[float] = deque(maxlen=recipe.guard.window)
        self._by_rank: list[float] = []
        self._leap, self._accepted = "", True
        self.fault = ""
        """why the last step was none; empty where it was one"""
        self.skipped = 0
        self.discarded = 0
        """those of the skipped steps that no loss scale has counted: updates the optimiser knows nothing of"""

    def accepts(self, loss: Tensor) -> bool:
        """Whether the weights may learn from a step with this loss on this rank; every rank calls and gets the same."""
        self._by_rank = ranks.gather(loss.detach().double().reshape(1)).tolist()  # (W,)
        mean = statistics.fmean(self._by_rank)
        self._leap = self._leaps(mean) if math.isfinite(mean) else ""
        self._accepted = math.isfinite(mean) and not self._leap
        return self._accepted

    def passes(self, step: int, result: StepResult) -> bool:
        """Whether step number `step` (from 1) was a step. One that was not ends the run, unless it is to be skipped."""
        self.fault = fault = self._leap or _no_number(result)
        if not fault:
            if self._settings.spike_sigmas:
                self._losses.append(result.loss)
            return True
        where = ranks.on_main(lambda: self._write(step, fault, result))
        if self._settings.on_nan == "stop":
            raise BadStep(
                f"the {fault} at step {step}; nothing was saved from it, its batch is in {where}. Go on in this "
                "--output with guard.on_nan = skip, or begin another with a lower optim.lr or a higher "
                "objective.temperature"
            )
        self.skipped += 1
        self.discarded += not (self._accepted and self._recipe.precision == "fp16")
        if self.skipped > self._settings.skips:
            raise BadStep(
                f"the {fault} at step {step}, and guard.skips = {self._settings.skips} steps were skipped before; its "
                f"batch is in {where}. Go on in this --output with more guard.skips, or begin another with a lower "
                "optim.lr or a higher objective.temperature"
            )
        ranks.say(f"step {step} skipped ({self.skipped} so far): the {fault}; its batch is in {where}")
        return False

    def state(self) -> dict[str, Any]:
        """What a resumed run must know to decide as this one would have."""
        return {"skipped": self.skipped, "discarded": self.discarded, "losses": list(self._losses)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.skipped, self.discarded = state["skipped"], state["discarded"]
        self._losses.extend(state["losses"])

    def _leaps(self, loss: float) -> str:
        sigmas = self._settings.spike_sigmas
        if not sigmas or len(self._losses) < self._settings.window:
            return ""
        mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
        if loss <= mean + sigmas * deviation:
            return ""
        return f"loss leapt to {loss:.4f} from {mean:.4f} ± {deviation:.4f}"

    def _write(self, step: int, fault: str, result: StepResult) -> Path:
        """Every rank's pairs of the step. They are a function of its number, so rank 0 can draw them all again."""
        place = Path(self._recipe.output) / f"bad-batch-{step:08d}"
        size, accumulation = self._recipe.batch.size, self._recipe.batch.accumulation
        batch = self._pairs.batch(step - 1, np.arange(size), size)
        with artifact.writing(place, KIND, overwrite=True) as draft:
            lines = (json.dumps(row, ensure_ascii=False) for row in self._rows(batch, size // accumulation))
            artifact.write_text(draft.folder / "pairs.jsonl", "\n".join(lines) + "\n")
            draft.meta |= {"step": step, "fault": f"the {fault}"}
            draft.meta |= {"loss_by_rank": list(map(str, self._by_rank)), "gradient_norm": str(result.gradient_norm)}
        return place

    def _rows(self, batch: PairBatch, micro: int) -> Iterator[dict[str, Any]]:
        queries, passages = batch.query.split(), batch.passage.split()
        for sample, language in enumerate(batch.language.tolist()):
            yield {
                "sample": sample,
                "rank": sample % micro % ranks.world_size(),
                "micro_batch": sample // micro,
                "language": batch.languages[language],
                "query": self._told(queries[sample]),
                "passage": self._told(passages[sample]),
            }

    def _told(self, sequence: Tensor) -> dict[str, Any]:
        ids = sequence.tolist()
        return {"length": len(ids), "text": self._tokenizer.decode(ids), "ids": ids}


def _no_number(result: StepResult) -> str:
    for name, value in (("loss", result.loss), ("gradient's norm", result.gradient_norm)):
        if not math.isfinite(value):
            return f"{name} became {value}"
    return ""
