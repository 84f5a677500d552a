"""The `checkpoint.pth` of the published Contriever code, which is a state of training and no model one could load.

It holds weights, optimiser and options in one pickle. It is read without executing any of it: tensors and plain values
are all that may be in there, besides the options' argparse.Namespace, which is turned into a dict at once. The code
that wrote it loads around what does not fit, and takes the names of a fine-tuned encoder for those of an in-batch
trainer's: it then starts from random weights and says nothing. Here the layout is told by the names, and every weight
has its place.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..corpus.tokenizer import Tokenizer
from . import checkpoint, foreign, registry
from .contract import CheckpointError, Contract, Rules
from .model import Encoder
from .weights import named, unpickle

# How each trainer names its encoder of queries; what is saved after fine-tuning is the bare encoder.
_LAYOUTS = {"moco": "encoder_q.", "in-batch": "encoder.embeddings.", "fine-tuned": "embeddings."}
_PREFIXES = {"moco": "encoder_q.", "in-batch": "encoder.", "fine-tuned": ""}


@dataclass(frozen=True)
class Reference:
    """What a checkpoint of the published code holds of use: its layout, step, options and encoder of queries."""

    path: Path
    layout: str
    step: int
    options: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def began_as(self) -> str:
        """The model that training began with, by its hub name; empty where the options do not say."""
        return str(self.options.get("retriever_model_id") or "")

    @property
    def rules(self) -> Rules:
        """How its options say that it is used."""
        rules = Rules()
        pooling, known = self.options.get("pooling"), foreign.CONTRIEVER_POOLINGS
        if pooling is not None:
            if pooling not in known:
                raise CheckpointError(f"{self.path}: pooling {pooling!r} cannot be loaded; known: {', '.join(known)}")
            rules["pooling"] = known[pooling]
        if "norm_doc" in self.options:
            # a query's length changes no order among passages, so the passages' side alone decides
            rules["normalise"] = bool(self.options["norm_doc"])
            rules["similarity"] = "cosine" if rules["normalise"] else "dot"
        rules["lowercase"] = bool(self.options.get("lower_case"))
        return rules

    def in_words(self) -> str:
        """What it is, for a person to read, a line a fact."""
        rules = ", ".join(f"{name} {value}" for name, value in self.rules.items())
        facts = {"layout": self.layout, "step": f"{self.step:,}", "began as": self.began_as or "not said", "use": rules}
        return "\n".join(f"{name + ':':14}{fact}" for name, fact in facts.items())


def is_reference(path: Path) -> bool:
    """Whether this is such a file, by its being a file, or a folder that holds one."""
    return path.is_file() or (path / checkpoint.REFERENCE).is_file()


def read(path: Path) -> Reference:
    """Read the file, or the one in the folder."""
    path = path / checkpoint.REFERENCE if path.is_dir() else path
    content = unpickle(path, allowed=(argparse.Namespace,))
    weights = content.get("model") if isinstance(content, dict) else None
    if not (isinstance(weights, dict) and weights and all(isinstance(value, Tensor) for value in weights.values())):
        raise CheckpointError(f"{path}: expected a dict with weights by name under 'model'; is it another program's?")
    layout = next((name for name, mark in _LAYOUTS.items() if any(key.startswith(mark) for key in weights)), None)
    if layout is None:
        first = ", ".join(map(str, list(weights)[:3]))
        raise CheckpointError(f"{path}: its weights ({first} …) are of no known layout; known: {', '.join(_LAYOUTS)}")
    prefix = _PREFIXES[layout]
    encoder = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    options, step = content.get("opt"), content.get("step", 0)
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    return Reference(
        path,
        layout,
        step if isinstance(step, int) else 0,
        options if isinstance(options, dict) else {},
        named(encoder, path),
    )


def convert(reference: Reference, tokenizer: str, given: Rules) -> Encoder:
    """Its encoder, with the tokenizer and configuration of `tokenizer`, the folder or name of what it began as."""
    origin = tokenizer or reference.began_as
    if not origin:
        raise CheckpointError(
            f"{reference.path}: does not say which model it began as; give --tokenizer, the folder or hub name of that "
            "model (its config.json and its tokenizer are taken)"
        )
    name = registry.full_name(origin)
    folder = Path(origin) if Path(origin).is_dir() else checkpoint.download(name, with_weights=False)
    config = foreign.read_config(folder)
    rules = foreign.complete(str(reference.path), reference.rules, given)
    words = Tokenizer.load(folder)
    return checkpoint.build(
        config, Contract.of(config, words, **rules), words, reference.weights, f"{reference.path}, as {origin}"
    )
