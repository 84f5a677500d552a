"""Train states: everything a run needs to go on as if it had never stopped, as one verified artifact a step.

Data order, views, dropout and learning rate are pure functions of (seed, step), so what is kept is only what is
learned: weights, moments, the momentum encoder and its queue. All is fp32 by name, whatever engine, stage or number
of ranks wrote it. No file says which state is the newest or the best: each speaks for itself, so nothing can point to
one that is not there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import artifact, ranks
from ..errors import ArtifactError, McontrieverError

KIND = "train state"
BESIDE = "encoder"  # the folder in a state that turns its weights into a checkpoint


def path_of(output: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return output / f"state-{step:08d}"


def save(
    output: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    keep: int,
    *,
    best: str = "",
    beside: Callable[[Path], object] | None = None,
) -> None:
    """Write the state after `step` steps (rank 0 writes, all ranks call), then let go of all but the newest `keep`.

    The one that is best by the measure `best` stays too. `beside` fills a folder that lies in the state.
    """

    def write() -> None:
        path = path_of(output, step)
        try:
            require_space(output, _bytes(tensors), f"the train state of step {step}")
            _write(path, tensors, {**meta, "step": step}, beside)
        except (OSError, McontrieverError) as error:
            what = f"the train state of step {step} could not be saved: {error}; the one before it is intact"
            raise ArtifactError(what) from error
        # What was just written has been read back for its checksums, so a state that verifies is always among the
        # kept. A newer one was passed over as damaged when resuming; it does not count, and is replaced in its turn.
        behind = [old for number, old in states(output) if number <= step]
        kept = {*behind[:keep], best_of(output, best)}
        for old in behind:
            if old not in kept:
                shutil.rmtree(old)

    ranks.on_main(write)


def require_space(output: Path, needed: int, what: str) -> None:
    """Complain where the disk that `output` is or will be on has not as many bytes left."""
    there = next(folder for folder in (output.resolve(), *output.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ArtifactError(f"{there}: {what} needs {_size(needed)} of disk, {_size(free)} are free; make room")


def newest(output: Path) -> tuple[Path | None, list[str]]:
    """The newest state that verifies, and a line about each newer one that does not. Decided by rank 0, told to all.

    None where there is no state at all; where there are and none verifies, to begin anew is not for us to decide.
    """

    def look() -> tuple[Path | None, list[str]]:
        complaints: list[str] = []
        for _, path in states(output):
            try:
                artifact.open_artifact(path, KIND)
                return path, complaints
            except ArtifactError as error:
                complaints.append(f"not resuming from {path.name}: {error}")
        if complaints:
            raise ArtifactError(
                f"{output}: no train state is whole ({complaints[0].partition(': ')[2]}); bring one back, or remove "
                "them to begin anew"
            )
        return None, complaints

    return ranks.on_main(look)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by part and name, and the facts. Rank 0 has verified the files."""
    opened = artifact.open_artifact(path, KIND, verify=False)
    parts = [name.removesuffix(".safetensors") for name in opened.files if "/" not in name]
    return {part: load_part(opened, part) for part in parts}, opened.meta


def load_part(opened: artifact.Artifact, part: str) -> dict[str, Tensor]:
    """One part's tensors by name, on the CPU."""
    from safetensors.torch import load_file

    return load_file(opened.file(f"{part}.safetensors"))


def discard_all(output: Path) -> None:
    """Remove every train state: training has ended and the checkpoint is what stays."""
    for _, path in states(output):
        shutil.rmtree(path)


def states(output: Path) -> list[tuple[int, Path]]:
    """Steps and folders, newest first; whether they are whole is not looked at."""
    found = [(re.fullmatch(r"state-(\d+)", path.name), path) for path in output.glob("state-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def score(measures: Mapping[str, float], measure: str) -> float | None:
    """The measure's value, turned so that more is better; None where it was not taken."""
    value = measures.get(measure)
    return -value if value is not None and measure == "loss" else value


def best_of(output: Path, measure: str) -> Path | None:
    """The state with the best value of the measure, the earliest of equals; None where none tells it."""
    found = []
    for step, path in states(output):
        if artifact.is_artifact(path, KIND):
            told = artifact.open_artifact(path, KIND, verify=False).meta.get("measures", {})
            found.append((score(told, measure), -step, path))
    return max(((s, step, path) for s, step, path in found if s is not None), default=(0, 0, None))[2]


def measures_of(path: Path | None) -> dict[str, float]:
    """What was measured of a state; nothing where there is none."""
    return {} if path is None else artifact.open_artifact(path, KIND, verify=False).meta.get("measures", {})


def best_measure(path: Path) -> str:
    """The measure that the run goes by which wrote the state; empty where it goes by none."""
    return str(artifact.open_artifact(path, KIND, verify=False).meta.get("best", ""))


def _write(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    beside: Callable[[Path], object] | None,
) -> None:
    if path.exists() and not artifact.is_artifact(path, KIND):
        shutil.rmtree(path)  # the damaged state that was passed over when resuming
    with artifact.writing(path, KIND, overwrite=True) as draft:
        for part, named in tensors.items():
            if named:
                artifact.save_tensors(draft.folder / f"{part}.safetensors", named)
        if beside is not None:
            (draft.folder / BESIDE).mkdir()
            beside(draft.folder / BESIDE)
        draft.meta.update(meta)


def _bytes(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(tensor.nbytes for named in tensors.values() for tensor in named.values())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
