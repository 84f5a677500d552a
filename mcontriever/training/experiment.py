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
from ..errors import SettingsError
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


def identity(recipe: TrainSettings) -> dict[str, Any]:
    """The settings that can change results, with the hash of the content in place of every path; JSON throughout."""
    told = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in _FREE}
    if recipe.init:
        told["init"] = _content(recipe.init)
    if recipe.labelled.file:
        told["labelled"]["file"] = _content(recipe.labelled.file)
    if recipe.unlabelled.shards:
        told["unlabelled"]["shards"] = Shards.open(recipe.unlabelled.shards, verify=False).fingerprint
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def require_same(path: Path, before: dict[str, Any], now: dict[str, Any], at: str = "") -> None:
    """Complain about the first setting in which what lies at `path` was made otherwise than is asked for now."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            require_same(path, old, new, f"{at}{key}.")
        elif old != new:
            what = "other content of" if f"{at}{key}" in ("init", "labelled.file", "unlabelled.shards") else "with"
            raise SettingsError(
                f"{path}: was trained {what} {at}{key} = {_short(old)}, it is {_short(new)} now; "
                "restore what it was, or choose another --output"
            )


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
