"""Train states: everything a run needs to go on as if it had never stopped, as one verified artifact a step.

Data order, views, dropout and learning rate are pure functions of (seed, step), so what is kept is only what is
learned: weights, moments, the momentum encoder and its queue. All is fp32 by name, whatever engine, stage or number
of ranks wrote it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import artifact, ranks
from ..errors import ArtifactError, McontrieverError

KIND = "train state"


def path_of(output: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return output / f"state-{step:08d}"


def save(
    output: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any], keep: int
) -> None:
    """Write the state after `step` steps (rank 0 writes, all ranks call), then let go of all but the newest `keep`."""

    def write() -> None:
        try:
            _write(path_of(output, step), tensors, {**meta, "step": step})
        except (OSError, McontrieverError) as error:
            what = f"the train state of step {step} could not be saved: {error}; the one before it is intact"
            raise ArtifactError(what) from error
        for _, old in _states(output)[keep:]:
            shutil.rmtree(old)

    ranks.on_main(write)


def newest(output: Path) -> tuple[Path | None, list[str]]:
    """The newest state that verifies, and a line about each newer one that does not. Decided by rank 0, told to all."""

    def look() -> tuple[Path | None, list[str]]:
        complaints: list[str] = []
        for _, path in _states(output):
            try:
                artifact.open_artifact(path, KIND)
                return path, complaints
            except ArtifactError as error:
                complaints.append(f"not resuming from {path.name}: {error}")
        return None, complaints

    return ranks.on_main(look)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors by part and name, and the facts. Rank 0 has verified the files."""
    from safetensors.torch import load_file

    opened = artifact.open_artifact(path, KIND, verify=False)
    parts = {name.removesuffix(".safetensors"): opened.file(name) for name in opened.files}
    return {part: load_file(file) for part, file in parts.items()}, opened.meta


def discard_all(output: Path) -> None:
    """Remove every train state: training has ended and the checkpoint is what stays."""
    for _, path in _states(output):
        shutil.rmtree(path)


def _write(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    if path.exists() and not artifact.is_artifact(path, KIND):
        shutil.rmtree(path)  # the damaged state that was passed over when resuming
    with artifact.writing(path, KIND, overwrite=True) as draft:
        for part, named in tensors.items():
            if named:
                artifact.save_tensors(draft.folder / f"{part}.safetensors", named)
        draft.meta.update(meta)


def _states(output: Path) -> list[tuple[int, Path]]:
    """Newest first."""
    found = [(re.fullmatch(r"state-(\d+)", path.name), path) for path in output.glob("state-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
