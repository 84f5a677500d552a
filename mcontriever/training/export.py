"""`mcontriever export RUN OUT`: the encoder of a train state, also while training goes on, or of a checkpoint.

A state holds whatever a checkpoint needs besides weights, so nothing else of the run is read, and nothing of it is
changed. What other software needs is made from that checkpoint, as from one that was given, by `encoder.formats`.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .. import artifact, encoder
from ..encoder import card, formats
from ..encoder.card import Card
from ..encoder.checkpoint import REFERENCE
from ..errors import ArtifactError, SettingsError, UsageError, did_you_mean
from ..evaluation import Results
from ..settings import one_of
from . import metrics, state
from .watching import RECIPE

_PARTS = {"query": "weights", "key": "key_encoder"}
_ATTEMPTS = 3
_BESIDE = (RECIPE, "deepspeed.json")  # what a checkpoint keeps of its training
_CHECKPOINT = ("config.json", "modules.json", REFERENCE)  # of which a folder has one


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write an encoder, with a model card, for us or for other software; a run it is of may be going on."""

    run: str
    """folder of a run, one train state in it, or a checkpoint (a folder, or a name on the hub)"""
    out: str
    """folder to write"""
    format: str = "checkpoint"
    """checkpoint, sentence-transformers, huggingface, onnx or onnx-int8; all but the first are checked when written"""
    step: str = "last"
    """which state of the run: last (the newest that verifies), best (by its saving.best), or a number of steps"""
    which: str = "query"
    """the encoder that is trained (query), or the momentum encoder that follows it (key)"""
    name: str = ""
    """what the card calls the model and its code loads, a name on the hub; by default the folder's name"""
    language: tuple[str, ...] = ()
    """languages for the card, as codes with commas between"""
    license: str = ""
    """license for the card, as the hub writes it: apache-2.0"""
    base_model: str = ""
    """model on the hub it was trained from, for the card; one that the recipe names is found there"""
    results: str = ""
    """results.json of an evaluation, for the card"""
    system: str = ""
    """which row of the results is this model"""
    accept_loss: bool = False
    """keep an onnx-int8 whose vectors are further from the fp32 ones than they should be"""
    overwrite: bool = False
    """replace OUT if it is there"""

    def __post_init__(self) -> None:
        one_of("which", self.which, _PARTS)
        one_of("format", self.format, formats.FORMATS)
        if self.accept_loss and self.format != "onnx-int8":
            raise SettingsError(f"accept_loss is only for format = 'onnx-int8', got format = {self.format!r}")
        if bool(self.results) != bool(self.system):
            raise SettingsError("results and system go together: the file, and the row of it that is this model")
        if not self.step.isdigit():
            one_of("step", self.step, ("last", "best"))


def export(settings: ExportSettings) -> Path:
    """Write the folder and say what of, and what the check found."""
    about, out, run = _about(settings), Path(settings.out), Path(settings.run)  # what is wrong comes before the work
    if not _is_run(run) or _has_ended(run):
        checkpoint = run / "model" if _is_run(run) else run
        if (settings.step, settings.which) != ("last", "query"):
            raise UsageError(f"{run}: a checkpoint has one encoder of one step; leave out --step and --which")
        name = str(checkpoint) if checkpoint.is_dir() else settings.run
        told = f"of {name}{_convert(name, settings, about, {'exported_from': checkpoint.name})}"
    elif settings.format == "checkpoint":
        told = f"the {settings.which} encoder of {_export(settings, out, about)}"
    else:
        artifact.refuse_overlap(out, [run])
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as aside:
            found = _export(settings, Path(aside) / "checkpoint", about)
            meta = {"exported_from": found.name, "encoder": settings.which}
            checked = _convert(str(Path(aside) / "checkpoint"), settings, about, meta)
            told = f"the {settings.which} encoder of {found}{checked}"
    sys.stdout.write(f"{out}: written, {told}\n")
    return out


def _export(settings: ExportSettings, out: Path, about: Card) -> Path:
    """Write the state chosen as a checkpoint to `out`; which state that was."""
    for attempt in range(1, _ATTEMPTS + 1):
        found = _choose(Path(settings.run), settings.step)
        try:
            _export_state(found, settings, out, about)
            break
        except (ArtifactError, FileNotFoundError):
            if attempt == _ATTEMPTS or found.exists():  # else the run let go of it meanwhile, and has a newer one
                raise
    return found


def _export_state(found: Path, settings: ExportSettings, out: Path, about: Card) -> None:
    artifact.refuse_overlap(out, [found])
    opened = artifact.open_artifact(found, state.KIND)
    part = _PARTS[settings.which]
    if f"{part}.safetensors" not in opened.files:
        raise UsageError(f"{found}: has no momentum encoder (objective.kind is not moco); leave out --which key")
    said = encoder.Contract.read(found / state.BESIDE)
    with artifact.writing(out, encoder.KIND, overwrite=settings.overwrite) as draft:
        shutil.copytree(found / state.BESIDE, draft.folder, dirs_exist_ok=True)
        encoder.save_weights(state.load_part(opened, part), draft.folder)
        draft.meta |= {"architecture": said.architecture, "exported_from": found.name, "encoder": settings.which}
        card.write(draft, _completed(about, draft.folder), said)


def _convert(checkpoint: str, settings: ExportSettings, about: Card, meta: dict[str, str]) -> str:
    """Write a checkpoint in the format chosen; what the check found, in words."""
    artifact.refuse_overlap(settings.out, [checkpoint])
    folder = Path(checkpoint)
    beside = {name: (folder / name).read_text(encoding="utf-8") for name in _BESIDE if (folder / name).is_file()}
    found = formats.write(
        encoder.load(checkpoint, device="cpu"),
        settings.out,
        format=settings.format,
        about=_completed(about, folder),
        beside=beside,
        meta=meta,
        accept_loss=settings.accept_loss,
        overwrite=settings.overwrite,
    )
    return f"; {found.in_words()}" if found else ""


def _about(settings: ExportSettings) -> Card:
    return Card(
        name=settings.name or Path(settings.out).absolute().name,
        format=settings.format,
        languages=settings.language,
        license=settings.license,
        base_model=settings.base_model or ("" if Path(settings.run).exists() else settings.run.partition("@")[0]),
        results=_results(settings) if settings.results else "",
    )


def _completed(about: Card, folder: Path) -> Card:
    """The card, with what a checkpoint's folder tells."""
    recipe = (folder / RECIPE).read_text(encoding="utf-8") if (folder / RECIPE).is_file() else ""
    begun = str(tomllib.loads(recipe).get("init", ""))
    adopted = ""
    if artifact.is_artifact(folder, encoder.KIND):
        adopted = str(artifact.open_artifact(folder, encoder.KIND, verify=False).meta.get("adopted_from", ""))
    base = about.base_model or card.known_base(begun) or card.known_base(adopted)
    return dataclasses.replace(about, recipe=recipe, base_model=base)


def _results(settings: ExportSettings) -> str:
    """The tables of an evaluation, after a sentence on what was measured."""
    results = Results.read(settings.results)
    systems = list(dict.fromkeys(value.system for value in results.values))
    if settings.system not in systems:
        near = did_you_mean(settings.system, systems)
        raise UsageError(f"--system {settings.system}: no such row in {settings.results}; {near}")
    # of a path only its end: the rest is about one machine
    facts = ", ".join(f"{key} {Path(str(value)).name}" for key, value in results.about.items())
    queries, passages = ({getattr(value, name) for value in results.values} for name in ("queries", "passages"))
    sizes = f"{_span(queries)} queries and {_span(passages)} passages a task"
    return (
        f"This model is the row `{settings.system}`. Measured with mcontriever's evaluation ({facts}): {sizes}; a task "
        f"is named by the languages of its queries and its passages.\n\n{results.markdown()}"
    )


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _is_run(path: Path) -> bool:
    """A run or a state, or nothing we know, of which `_choose` complains; everything else is for `encoder.load`."""
    return path.is_dir() and not any((path / name).is_file() for name in _CHECKPOINT)


def _has_ended(run: Path) -> bool:
    """Whether all that a run has left is its checkpoint."""
    return artifact.is_artifact(run / "model", encoder.KIND) and not state.states(run)


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
