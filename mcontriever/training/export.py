"""`mcontriever export RUN OUT`: the encoder of a train state as a checkpoint, at any time, also while training goes on.

A state holds whatever a checkpoint needs besides weights, so nothing else of the run is read, and nothing of it is
changed.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .. import artifact, encoder
from ..errors import ArtifactError, UsageError
from ..settings import one_of
from . import metrics, state
from .watching import RECIPE

_PARTS = {"query": "weights", "key": "key_encoder"}
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write the encoder of a run, or of one of its train states, as a checkpoint; the run may be going on."""

    run: str
    """folder of a run, or one train state in it"""
    out: str
    """folder to write"""
    step: str = "last"
    """which state of the run: last (the newest that verifies), best (by its saving.best), or a number of steps"""
    which: str = "query"
    """the encoder that is trained (query), or the momentum encoder that follows it (key)"""
    overwrite: bool = False
    """replace OUT if it is there"""

    def __post_init__(self) -> None:
        one_of("which", self.which, _PARTS)
        if not self.step.isdigit():
            one_of("step", self.step, ("last", "best"))


def export(settings: ExportSettings) -> Path:
    """Write the checkpoint and say from which step it is."""
    for attempt in range(1, _ATTEMPTS + 1):
        found = _choose(Path(settings.run), settings.step)
        try:
            out = _export(found, settings)
            break
        except (ArtifactError, FileNotFoundError):
            if attempt == _ATTEMPTS or found.exists():  # else the run let go of it meanwhile, and has a newer one
                raise
    sys.stdout.write(f"{out}: written, the {settings.which} encoder of {found}\n")
    return out


def _export(found: Path, settings: ExportSettings) -> Path:
    artifact.refuse_overlap(settings.out, [found])
    opened = artifact.open_artifact(found, state.KIND)
    part = _PARTS[settings.which]
    if f"{part}.safetensors" not in opened.files:
        raise UsageError(f"{found}: has no momentum encoder (objective.kind is not moco); leave out --which key")
    said = encoder.Contract.read(found / state.BESIDE)
    with artifact.writing(settings.out, encoder.KIND, overwrite=settings.overwrite) as draft:
        shutil.copytree(found / state.BESIDE, draft.folder, dirs_exist_ok=True)
        encoder.save_weights(state.load_part(opened, part), draft.folder)
        draft.meta |= {"architecture": said.architecture, "exported_from": found.name, "encoder": settings.which}
    return Path(settings.out)


def _choose(run: Path, step: str) -> Path:
    if artifact.is_artifact(run, state.KIND):
        return run
    there = state.states(run)
    if not there and (run / metrics.NAME).exists() and not (run / "model").exists():
        raise ArtifactError(f"{run}: no state saved yet; {_first(run)}, or send SIGUSR1 to save and stop")
    if not there:
        raise ArtifactError(
            f"{run}: neither a train state nor a run that holds one; a run that has ended has its model/"
        )
    if step == "last":
        for _, path in there:
            if _verifies(path):
                return path
        raise ArtifactError(f"{run}: none of its {len(there)} train states is whole")
    if step == "best":
        measure = next((state.best_measure(path) for _, path in there if artifact.is_artifact(path, state.KIND)), "")
        best = state.best_of(run, measure) if measure else None
        if best is None:
            raise UsageError(f"{run}: no state tells how good it is (saving.best); give --step last or a number")
        return best
    chosen = state.path_of(run, int(step))
    if not chosen.is_dir():
        known = ", ".join(str(number) for number, _ in there)
        raise UsageError(f"{run}: no train state of step {step}; there are {known}")
    return chosen


def _first(run: Path) -> str:
    """When the first state comes, as far as the run has told."""
    if not (run / RECIPE).exists():
        return "the first comes after saving.every steps"
    told = tomllib.loads((run / RECIPE).read_text(encoding="utf-8"))
    return f"the first comes at step {min(told['saving']['every'], told['steps']):,} (saving.every)"


def _verifies(path: Path) -> bool:
    try:
        artifact.open_artifact(path, state.KIND)
    except ArtifactError:
        return False
    return True
