"""What makes two runs the same experiment: every setting that can change results, and the content of what they read.

Where things lie is not part of it: the same shards under another path are the same, others under the same path are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from .. import artifact
from ..corpus import Shards
from ..encoder import ModelSettings
from ..errors import SettingsError
from ..pairs import BM25
from .settings import TrainSettings

# What may change between two starts of one run.
_FREE = (
    "output",
    "deepspeed_config",
    "activation_checkpointing",
    "log_every",
    "saving",
    "guard",
    "logging",
    "evaluation",
    "plan",
    "planning",
)


_PATHS = ("init", "labelled.file", "unlabelled.shards", "unlabelled.salience")


def identity(recipe: TrainSettings) -> dict[str, Any]:
    """The settings that can change results, with the hash of the content in place of every path; JSON throughout."""
    told = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in _FREE}
    if recipe.init:
        told["init"] = _content(recipe.init)
        # of [model] nothing else is taken then; defaults instead of nothing, as runs of older versions have it
        told["model"] = dataclasses.asdict(ModelSettings(attention_dropout=recipe.model.attention_dropout))
    if recipe.labelled.file:
        told["labelled"]["file"] = _content(recipe.labelled.file)
    if recipe.unlabelled.shards:
        told["unlabelled"]["shards"] = Shards.open(recipe.unlabelled.shards, verify=False).fingerprint
    if recipe.unlabelled.salience != BM25:
        told["unlabelled"]["salience"] = _content(recipe.unlabelled.salience)
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def require_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Complain about the first setting in which what lies at `path` was made otherwise than is asked for now.

    A setting that did not exist yet when it was made counts as its default: a new version goes on with old runs.
    """
    _compare(path, before, now, _defaults(), "")


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any], at: str) -> None:
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, defaults.get(key)), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _compare(path, old, new, defaults.get(key) or {}, f"{at}{key}.")
        elif old != new:
            if at + key == "steps":
                way = f"--init {path}" if path.name == "model" else f"mcontriever export {path} OUT and --init OUT"
                raise SettingsError(
                    f"{path}: is of a run of {old} steps, {new} are asked for, and the learning rate of every step "
                    f"depends on that; restore steps = {old}, or go on from its weights in another --output: {way}"
                )
            what = "other content of" if f"{at}{key}" in _PATHS else "with"
            raise SettingsError(
                f"{path}: was trained {what} {at}{key} = {_short(old)}, it is {_short(new)} now; "
                "restore what it was, or choose another --output"
            )


def _defaults() -> dict[str, Any]:
    given = {
        field.name: dataclasses.asdict(field.default_factory()) if callable(field.default_factory) else field.default
        for field in dataclasses.fields(TrainSettings)
        if field.name not in _FREE
    }
    return json.loads(json.dumps(given))  # type: ignore[no-any-return]


def _content(name: str) -> str:
    """Hash of a file, or of a folder by names and contents; a hub name stands for itself."""
    path = Path(name)
    if path.is_file():
        return artifact.sha256(path)
    if not path.is_dir():
        return name
    if (path / artifact.MANIFEST).is_file():
        return artifact.sha256(path / artifact.MANIFEST)  # which holds the hash of every file
    files = sorted(file for file in path.rglob("*") if file.is_file())
    told = [(file.relative_to(path).as_posix(), artifact.sha256(file)) for file in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
