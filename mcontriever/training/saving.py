"""What a run writes besides its metrics: train states on the way, the checkpoint in the end; and reading them back."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import artifact, encoder, ranks, settings
from ..encoder import Encoder
from ..errors import ArtifactError
from . import state
from .engine import Engine
from .experiment import require_same
from .guards import Guard
from .settings import TrainSettings
from .step import Moco, Objective


class Saver:
    """Saves one run and finds it again; what is saved is of the experiment `experiment` and of nothing else."""

    def __init__(
        self,
        recipe: TrainSettings,
        experiment: dict[str, Any],
        encoder: Encoder,
        engine: Engine,
        objective: Objective,
        guard: Guard | None = None,
    ) -> None:
        self.recipe, self.experiment, self.output = recipe, experiment, Path(recipe.output)
        self.encoder, self.engine, self.objective, self._guard = encoder, engine, objective, guard
        self._best: float | None = None
        self._losses: list[float] = []  # since the last state
        self._measured: dict[str, float] = {}

    def require_space(self, done: int) -> None:
        """Complain before the first step if the disk cannot hold what will lie on it at once. Every rank calls."""
        saving = self.recipe.saving
        weights = sum(getattr(weight, "ds_numel", weight.numel()) for weight in self.encoder.parameters())
        numbers = 3 * weights  # with the moments
        if isinstance(self.objective, Moco):
            queue = self.objective.queue.state_dict().values()
            numbers += weights + sum(tensor.nbytes for tensor in queue) // 4
        left = -(-(self.recipe.steps - done) // saving.every)
        # one is written before another goes
        more = min(saving.keep + 1 + bool(saving.best) - len(state.states(self.output)), left)
        needed = 4 * (max(1, more) * numbers + weights)
        what = f"training ({max(1, more)} more train states, saving.keep = {saving.keep}, and the checkpoint)"
        ranks.on_main(lambda: state.require_space(self.output, needed, what))

    def due(self, step: int, measured: Mapping[str, float] | None) -> bool:
        """Whether the state after `step` steps is one to save: it is time, or by `measured` it is the best yet."""
        self._measured = dict(measured or {})
        score = state.score(self._measured, self.recipe.saving.best)
        best = score is not None and (self._best is None or score > self._best)
        return best or step % self.recipe.saving.every == 0 or step == self.recipe.steps

    def saw(self, loss: float) -> None:
        """Take note of the loss of a step that counts: their mean is the state's measure `loss`."""
        self._losses.append(loss)

    def save(self, step: int) -> None:
        """The state after `step` steps. Every rank calls."""
        tensors: dict[str, dict[str, Tensor]] = self.engine.state()
        if isinstance(self.objective, Moco):
            keys = self.objective.encoder.state_dict()  # on every rank: it may be gathered
            tensors = {**tensors, "key_encoder": keys, "queue": self.objective.queue.state_dict()}
        if self._losses:
            self._measured["loss"] = statistics.fmean(self._losses)
        meta = {
            "experiment": self.experiment,
            "best": self.recipe.saving.best,
            "measures": self._measured,
            "written_by": written_by(self.recipe),
            "guard": self._guard.state() if self._guard else None,
        }
        state.save(
            self.output,
            step,
            tensors,
            meta,
            self.recipe.saving.keep,
            best=self.recipe.saving.best,
            beside=self._outline,
        )
        self._keep_score(self._measured)
        self._losses, self._measured = [], {}

    def resume(self) -> int:
        """Take back the newest state that verifies; the number of steps it has behind it, 0 without one."""
        path, complaints = state.newest(self.output)
        for complaint in complaints:
            ranks.say(complaint)
        if path is None:
            return 0
        tensors, meta = state.load(path)
        require_same(path, meta["experiment"], self.experiment)
        step = int(meta["step"])
        if self._guard and meta["guard"]:
            self._guard.load_state(meta["guard"])
        self.engine.load_state(tensors, step - (self._guard.discarded if self._guard else 0))
        if isinstance(self.objective, Moco):
            self.objective.encoder.load_state_dict(tensors["key_encoder"])
            self.objective.queue.load_state_dict(tensors["queue"])
        self._keep_score(ranks.on_main(lambda: state.measures_of(state.best_of(self.output, self.recipe.saving.best))))
        ranks.say(f"resuming after step {step} from {path}")
        if meta["written_by"] != written_by(self.recipe):
            ranks.say(
                f"written by {meta['written_by']}, goes on with {written_by(self.recipe)}: weights, moments, queue, "
                "batches and learning rate are the same; dropout is drawn otherwise where the number of ranks differs, "
                "and sums are rounded otherwise"
            )
        return step

    def _keep_score(self, measures: Mapping[str, float]) -> None:
        score = state.score(measures, self.recipe.saving.best)
        if score is not None and (self._best is None or score > self._best):
            self._best = score

    def _outline(self, folder: Path) -> None:
        encoder.save_outline(self.encoder, folder)
        artifact.write_text(folder / "recipe.toml", settings.dump(self.recipe))


def written_by(recipe: TrainSettings) -> str:
    """The ranks and the engine in words: what may change between two starts of one run."""
    world = ranks.world_size()
    engine = Path(recipe.deepspeed_config).stem or "the plain engine"
    return f"{world} rank{'s' * (world > 1)} and {engine}"


def finished(recipe: TrainSettings, experiment: dict[str, Any]) -> bool:
    """Whether this very run has ended already; another's checkpoint in its place is an error."""
    output, model = Path(recipe.output), model_of(recipe)
    if not model.exists():
        return False
    meta = artifact.open_artifact(model, "checkpoint", verify=False).meta
    if "experiment" not in meta:
        raise ArtifactError(f"{model}: holds a checkpoint that no training run wrote; choose another --output")
    require_same(model, meta["experiment"], experiment)
    if not recipe.saving.keep_last:
        state.discard_all(output)  # an earlier start may have been killed between the checkpoint and this
    return True


def write_checkpoint(saver: Saver, deepspeed: dict[str, Any] | None) -> None:
    """The end of a run: the encoder with its contract, the recipe beside it. Every rank calls."""
    recipe, weights = saver.recipe, saver.engine.state()["weights"]

    def write() -> None:
        extra = {"recipe.toml": settings.dump(recipe)}
        if deepspeed is not None:
            extra["deepspeed.json"] = json.dumps(deepspeed, indent=2) + "\n"
        meta = {"experiment": saver.experiment}
        encoder.save(saver.encoder, model_of(recipe), weights=weights, extra_files=extra, meta=meta)
        if not recipe.saving.keep_last:
            state.discard_all(saver.output)

    ranks.on_main(write)
    ranks.say(f"checkpoint written to {model_of(recipe)}")


def model_of(recipe: TrainSettings) -> Path:
    """Where the checkpoint of a run lies."""
    return Path(recipe.output) / "model"
