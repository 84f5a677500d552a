"""Checkpoints that others wrote: where their parts lie and how they must be used.

Nothing is guessed here. The registry says it for names it knows, else the folder's own files do; what neither says is
asked for. What we do not load is refused with the reason and with what to take instead.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from . import registry, sentence_transformers_folder
from .contract import POOLINGS, SIMILARITIES, CheckpointError, Rules, positions
from .model import ARCHITECTURES
from .sentence_transformers_folder import MODULES, Dense
from .weights import named, read_json, read_weights

CONFIG = "config.json"
_NOT_OURS = ("_attn_implementation", "attn_implementation")  # which kernels: ours are chosen here
_TOLD = ("pooling", "similarity", "query_prefix", "passage_prefix")  # rules by which a copy is told from its model
_CHOICES = {"pooling": POOLINGS, "similarity": SIMILARITIES}
# What the published training code writes into a configuration, and the classes it writes it for.
CONTRIEVER_POOLINGS = {"average": "mean", "mean": "mean", "cls": "cls"}
_CONTRIEVER_CLASSES = ("Contriever", "XLMRetriever")


@dataclass(frozen=True)
class Found:
    """A checkpoint of others: where its model lies, its configuration and rules of use, and who says those."""

    folder: Path
    config: Any
    rules: Rules
    dense: Dense | None
    said_by: str

    @property
    def shape(self) -> dict[str, Any]:
        """What its contract says of a projection."""
        return {"projection": self.dense.activation, "dimension": self.dense.dimension} if self.dense else {}

    def weights(self) -> dict[str, Tensor]:
        """The weights by our names."""
        return named(read_weights(self.folder), self.folder) | (self.dense.weights() if self.dense else {})


def find(folder: Path, name: str, given: Rules) -> Found:
    """The checkpoint in `folder` and how to use it: as the registry or its own files say, and then as `given`."""
    transformer = sentence_transformers_folder.transformer_folder(folder)
    config = read_config(transformer)
    known = registry.find(name)
    dense, rules, said_by = None, Rules(), "nobody but you"
    if (folder / MODULES).is_file():
        parts = sentence_transformers_folder.read(folder, positions(config))
        dense, rules, said_by = parts.dense, parts.rules, f"its own files, {MODULES} and those it names"
    elif getattr(config, "pooling", None) is not None:
        rules, said_by = _contriever(transformer / CONFIG, config), f"its {CONFIG}"
    if known:
        rules, said_by = known.rules, "the registry of known checkpoints"
        found = dense.activation if dense else ""
        if found != known.projection:
            raise CheckpointError(
                f"{name}: its folder has {found or 'no'} projection, "
                f"the model of that name {known.projection or 'none'}; download it again"
            )
    else:
        _tell_likeness(folder, rules, given)
    for key, value in given.items():
        if key in _TOLD and key in rules and rules[key] != value:  # type: ignore[literal-required]
            sys.stderr.write(f"{name}: {key} {value!r} as you say; {said_by}: {rules[key]!r}\n")  # type: ignore[literal-required]
    return Found(transformer, config, complete(name, rules, given), dense, said_by)


def _tell_likeness(folder: Path, rules: Rules, given: Rules) -> None:
    """A copy of a known model by another path loses what only the registry knows of it; that must not go unsaid."""
    cached = folder.parent.parent.name if folder.parent.name == "snapshots" else ""  # the hub's own cache
    likely = registry.like(cached.removeprefix("models--").replace("--", "/", 1) or folder.name)
    if not likely:
        return
    known, both = registry.KNOWN[likely].rules, {**rules, **given}
    other = [f"{key} {value!r}" for key, value in known.items() if key in _TOLD and both.get(key, "") != value]
    if other:
        sys.stderr.write(
            f"{folder}: is it {likely}? That is used with {', '.join(other)}; give these, or load it by name\n"
        )


def complete(name: str, said: Rules, given: Rules) -> Rules:
    """What a checkpoint says of its use, and over it what is `given`; what neither says is asked for."""
    rules = Rules(**{**said, **given})  # type: ignore[typeddict-item]
    if rules.get("similarity") == "cosine":
        rules.setdefault("normalise", True)
    missing = [key for key in _CHOICES if key not in rules]
    if missing:
        wanted = ", ".join(f"{key}=" + " or ".join(f'"{word}"' for word in _CHOICES[key]) for key in missing)
        options = " ".join(f"--{key} " + "|".join(_CHOICES[key]) for key in missing)
        raise CheckpointError(
            f"{name}: its files do not say how it must be used; give load(…, {wanted}), "
            f"or once for all: mcontriever adopt {name} OUT {options}"
        )
    return rules


def read_config(folder: Path) -> Any:
    """The configuration of a model of a kind we load; any other is refused."""
    path = folder / CONFIG
    content = read_json(path)
    kind = content.get("model_type")
    known = registry.refused_type(kind)
    instead = f"; take {known.instead}" if known else ""
    if content.get("auto_map"):
        raise CheckpointError(
            f"{path}: its model is code that comes with it (auto_map); such code is never run here{instead}"
        )
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        why = f" ({known.why})" if known else ""
        loaded = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{path}: model_type {kind!r} cannot be loaded{why}{instead}; known: {loaded}")
    try:
        config = ARCHITECTURES[kind][0].from_dict(
            {key: value for key, value in content.items() if key not in _NOT_OURS}
        )
        positions(config)
        eps = config.layer_norm_eps
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a configuration of {kind} ({why}); download the folder again") from error
    if getattr(config, "is_decoder", False):
        raise CheckpointError(f"{path}: is_decoder true cannot be loaded: its tokens see only those before them")
    if not (isinstance(eps, int | float) and math.isfinite(eps) and eps > 0):
        raise CheckpointError(f"{path}: layer_norm_eps must be a number above 0, got {eps!r}")
    return config


def refuse(name: str) -> None:
    """Say why a model of that name on the hub is not loaded, before anything is downloaded."""
    if row := registry.refused(name):
        raise CheckpointError(f"{name}: cannot be loaded, for {row.why}; take {row.instead}")


def _contriever(path: Path, config: Any) -> Rules:
    if not isinstance(config.pooling, str) or config.pooling not in CONTRIEVER_POOLINGS:
        known = ", ".join(CONTRIEVER_POOLINGS)
        raise CheckpointError(f"{path}: pooling {config.pooling!r} cannot be loaded; known: {known}")
    rules = Rules(pooling=CONTRIEVER_POOLINGS[config.pooling])
    if set(config.architectures or ()) & set(_CONTRIEVER_CLASSES):
        rules |= Rules(similarity="dot", normalise=False)
    return rules
