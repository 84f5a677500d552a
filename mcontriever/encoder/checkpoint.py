"""Checkpoints on disk: Hugging Face's layout, so that any tool opens them, with the contract and a manifest beside it.

A folder of ours is verified byte by byte before it is used. One that others wrote has no contract; `foreign` finds out,
and a checkpoint that does not say how it must be used is asked about, never guessed at.
"""

from __future__ import annotations

import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers.initialization import no_init_weights

from .. import artifact
from ..corpus.tokenizer import Tokenizer
from ..errors import UsageError
from . import contract, foreign, inference, registry
from .contract import CheckpointError, Contract, Rules
from .devices import resolve_device
from .foreign import CONFIG
from .model import FOR_USE, Encoder
from .weights import PICKLED, WEIGHTS, bare, fill, named, read_weights

KIND = "checkpoint"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_TEXTS = ["*.json", "*.model", "*.txt", "*.toml"]
_WEIGHTS = ["*.safetensors", f"*_Dense/{PICKLED}"]
_PICKLES = "*pytorch_model*.bin"  # one, or several with an index; in some repositories in 0_Transformer
REFERENCE = "checkpoint.pth"  # the name that the published training code gives to what it saves


def save(
    encoder: Encoder,
    path: Path | str,
    *,
    weights: Mapping[str, Tensor] | None = None,
    extra_files: Mapping[str, str] | None = None,
    meta: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint.

    `weights`, named as in `encoder.state_dict()`, stand in for the encoder's own (ZeRO keeps the masters elsewhere);
    `extra_files` are texts to lie beside it (the recipe), `meta` facts for the manifest.
    """
    expected = encoder.state_dict()
    weights = expected if weights is None else weights
    if weights.keys() != expected.keys():
        differing = sorted(weights.keys() ^ expected.keys())[:3]
        raise ValueError(f"weights must be named as in encoder.state_dict(); they differ in {differing}")
    with artifact.writing(path, KIND, overwrite=overwrite) as draft:
        save_weights(weights, draft.folder)
        save_outline(encoder, draft.folder)
        for name, text in (extra_files or {}).items():
            if (draft.folder / name).exists():
                raise ValueError(f"extra file {name!r} would replace a file of the checkpoint")
            artifact.write_text(draft.folder / name, text)
        draft.meta |= {"architecture": encoder.contract.architecture, **(meta or {})}
    return Path(path)


def save_outline(encoder: Encoder, folder: Path) -> None:
    """All that a checkpoint's folder holds besides the weights."""
    encoder.config.architectures = [type(encoder.model).__name__]
    encoder.config.to_json_file(folder / CONFIG)
    encoder.tokenizer.save(folder)
    encoder.contract.save(folder)


def save_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """The weights of a checkpoint's folder, given as they are named in `encoder.state_dict()`."""
    tensors = {bare(name): tensor.detach().cpu() for name, tensor in weights.items()}
    artifact.save_tensors(folder / WEIGHTS, tensors)


def load(
    path_or_name: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    **rules: typing.Unpack[Rules],
) -> Encoder:
    """An encoder, ready to use, from a checkpoint folder or a name on the Hugging Face hub.

    A name may end in @REVISION, a branch or commit; the registry's names without one are taken at the commit that their
    rules of use were checked at. `device` is a GPU where there is one, else the CPU; `precision` "bf16" or "fp16" lets
    the layers compute in it, "int8" is for a CPU alone and not exact. `rules` (pooling="mean", similarity="dot",
    query_prefix=…) are for folders that do not say how they must be used.
    """
    if precision not in FOR_USE:
        raise UsageError(f"precision must be one of {', '.join(FOR_USE)}, got {precision!r}")
    name, where = os.fspath(path_or_name), resolve_device(device)
    inference.refuse_int8(precision, where)
    if precision != (precision := inference.usable(precision, where)):
        sys.stderr.write(f"this processor has no bf16 units: {precision} instead, which is faster here\n")
    opened = _open(name, rules)
    encoder = build(opened.config, opened.said, opened.tokenizer, opened.weights(), name)
    encoder.source, encoder.precision = name, precision
    return encoder.to(where).eval()


def check(path_or_name: Path | str, **rules: typing.Unpack[Rules]) -> Contract:
    """The contract `load` would use. All that it may complain of is looked at, but what others' weights hold."""
    return look(path_or_name, **rules)[0]


def look(path_or_name: Path | str, **rules: typing.Unpack[Rules]) -> tuple[Contract, str]:
    """The contract as `check` gives it, and who says it. Of a name on the hub no weights are downloaded."""
    opened = _open(os.fspath(path_or_name), rules, with_weights=False)
    opened.said.verify(opened.tokenizer, opened.config)
    return opened.said, opened.said_by


def build(config: Any, said: Contract, tokenizer: Tokenizer, weights: Mapping[str, Tensor], origin: str) -> Encoder:
    """An encoder of weights that are named as in a checkpoint's file; whatever does not fit names their `origin`."""
    try:
        with no_init_weights():  # every weight is about to be replaced
            encoder = Encoder(config, said, tokenizer)
    except (
        CheckpointError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:  # the last three are transformers' and torch's
        raise CheckpointError(f"{origin}: {' '.join(str(error).split())}") from error
    fill(encoder, weights, origin)
    return encoder


def download(name: str, *, with_weights: bool = True) -> Path:
    """The folder of a model on the hub, in the hub's own cache."""
    asked = _HUB_NAME.fullmatch(name)
    if not asked:
        raise CheckpointError(f"{name}: no such folder; expected a checkpoint folder or a name on the Hugging Face hub")
    foreign.refuse(name)
    known, revision = registry.find(asked["name"]), asked["revision"]
    if known and known.revision and not revision:
        revision = known.revision
        sys.stderr.write(f"{name}: taken at commit {revision[:12]}, which its rules of use were checked at\n")
    try:
        patterns = [*_TEXTS, *_WEIGHTS] if with_weights else _TEXTS
        folder = Path(snapshot_download(asked["name"], revision=revision, allow_patterns=patterns))
        if with_weights and not any(file for place in ("", "0_*/") for file in folder.glob(f"{place}*.safetensors")):
            patterns = [*patterns, _PICKLES]
            folder = Path(snapshot_download(asked["name"], revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder, and the hub does not give it ({why}); check the name, or the network"
        ) from error
    return folder


@dataclass(frozen=True)
class _Opened:
    """What a checkpoint's files but the weights say, and how to get those."""

    config: Any
    said: Contract
    tokenizer: Tokenizer
    weights: Callable[[], dict[str, Tensor]]
    said_by: str


def _open(name: str, rules: Rules, *, with_weights: bool = True) -> _Opened:
    if Path(name).is_file() or (Path(name) / REFERENCE).is_file():
        raise CheckpointError(
            f"{name}: a checkpoint of training, not of a model; write it anew: mcontriever adopt {name} OUT"
        )
    folder = Path(name) if Path(name).is_dir() else download(name, with_weights=with_weights)
    if (folder / artifact.MANIFEST).exists() or (folder / contract.FILE).exists():
        if rules:
            raise UsageError(f"{folder}: has a contract, which says how it must be used; leave out {', '.join(rules)}")
        artifact.open_artifact(folder, KIND)
        config, said, tokenizer = foreign.read_config(folder), Contract.read(folder), Tokenizer.load(folder)
        return _Opened(config, said, tokenizer, lambda: named(read_weights(folder), folder), f"its {contract.FILE}")
    found = foreign.find(folder, name, rules)
    tokenizer = Tokenizer.load(found.folder)
    try:
        said = Contract.of(found.config, tokenizer, **found.shape, **found.rules)
    except TypeError as error:
        raise UsageError(f"load: {error}; rules are {', '.join(Rules.__annotations__)}") from error
    return _Opened(found.config, said, tokenizer, found.weights, found.said_by)
