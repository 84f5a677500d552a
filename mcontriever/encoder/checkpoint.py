"""Checkpoints on disk: Hugging Face's layout, so that any tool opens them, with the contract and a manifest beside it.

A folder of ours is verified byte by byte before it is used. One that others wrote has no contract; `foreign` finds out,
and a checkpoint that does not say how it must be used is asked about, never guessed at.
"""

from __future__ import annotations

import os
import re
import sys
import typing
from collections.abc import Mapping
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
from . import contract, foreign, registry
from .contract import CheckpointError, Contract, Rules
from .devices import resolve_device
from .model import ARCHITECTURES, PRECISIONS, Encoder

KIND = "checkpoint"
CONFIG = "config.json"
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.toml"]
_PREFIX = "model."  # what Encoder's own state_dict puts before the names of the layers


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
    tensors = {name.removeprefix(_PREFIX): tensor.detach().cpu() for name, tensor in weights.items()}
    artifact.save_tensors(folder / foreign.WEIGHTS, tensors)


def load(
    path_or_name: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    **rules: typing.Unpack[Rules],
) -> Encoder:
    """An encoder, ready to use, from a checkpoint folder or a name on the Hugging Face hub.

    A name may end in @REVISION, a branch or commit; the registry's names without one are taken at the commit that their
    rules of use were checked at. `device` is a GPU where there is one, else the CPU; `precision` "bf16" or
    "fp16" runs the layers in autocast. `rules` (pooling="mean", similarity="dot", query_prefix=…) are for folders that
    do not say how they must be used.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    name, where = os.fspath(path_or_name), resolve_device(device)
    encoder = _build(*_open(name, rules))
    encoder.source, encoder.precision = name, precision
    return encoder.to(where).eval()


def check(path_or_name: Path | str, **rules: typing.Unpack[Rules]) -> Contract:
    """The contract `load` would use. All that it may complain of is looked at, but what others' weights hold."""
    _, config, said, tokenizer = _open(os.fspath(path_or_name), rules)
    said.verify(tokenizer, config)
    return said


def _open(name: str, rules: Rules) -> tuple[Path, Any, Contract, Tokenizer]:
    """The folder, and what its files but the weights say."""
    folder = Path(name) if Path(name).is_dir() else _download(name)
    if (folder / artifact.MANIFEST).exists() or (folder / contract.FILE).exists():
        if rules:
            raise UsageError(f"{folder}: has a contract, which says how it must be used; leave out {', '.join(rules)}")
        artifact.open_artifact(folder, KIND)
        return folder, _config(folder), Contract.read(folder), Tokenizer.load(folder)
    config = _config(folder)
    found = foreign.find_rules(folder, name, rules)
    tokenizer = Tokenizer.load(folder)
    try:
        return folder, config, Contract.of(config, tokenizer, **found), tokenizer
    except TypeError as error:
        raise UsageError(f"load: {error}; rules are {', '.join(Rules.__annotations__)}") from error


def _build(folder: Path, config: Any, said: Contract, tokenizer: Tokenizer) -> Encoder:
    try:
        with no_init_weights():  # every weight is about to be replaced
            encoder = Encoder(config, said, tokenizer)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    foreign.fill(encoder.model, foreign.read_weights(folder), str(folder))
    return encoder


def _config(folder: Path) -> Any:
    path = folder / CONFIG
    content = foreign.read_json(path)
    kind = content.get("model_type")
    if content.get("auto_map"):
        raise CheckpointError(f"{path}: its model is code that comes with it (auto_map); such code is never run here")
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{path}: model_type {kind!r} cannot be loaded; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind][0].from_dict(content)


def _download(name: str) -> Path:
    asked = _HUB_NAME.fullmatch(name)
    if not asked:
        raise CheckpointError(f"{name}: no such folder; expected a checkpoint folder or a name on the Hugging Face hub")
    known, revision = registry.find(asked["name"]), asked["revision"]
    if known and known.revision and not revision:
        revision = known.revision
        sys.stderr.write(f"{name}: taken at commit {revision[:12]}, which its rules of use were checked at\n")
    try:
        folder = Path(snapshot_download(asked["name"], revision=revision, allow_patterns=_PATTERNS))
        if not any(folder.glob("*.safetensors")):
            patterns = [*_PATTERNS, foreign.PICKLED]
            folder = Path(snapshot_download(asked["name"], revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder, and the hub does not give it ({why}); check the name, or the network"
        ) from error
    return folder
