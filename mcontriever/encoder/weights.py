"""Weights and settings in the files of a checkpoint, read as strangers' files: no code is run, nothing passed over.

A weight that has no place, or a place that has no weight, is an error: loading around it in silence is how
Contriever's own fine-tuned weights came to be ignored. A weight that is no number would answer every query the same.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .contract import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MODEL, PROJECTION = "model.", "projection."  # what Encoder's own state_dict puts before the names of its two parts
# Parts of a model that the vectors do not go through, and buffers that older versions of transformers saved.
_UNUSED = re.compile(r"(pooler|lm_head|cls)\.|embeddings\.(position_ids|token_type_ids)$")
_HUB_PREFIX = re.compile(r"^(roberta|bert)\.")


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON object (or list) of a checkpoint's folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; copy or download the folder again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy or download the folder again") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path}: expected a JSON {kind.__name__}, got {str(content)[:60]!r}")
    return content


def inside(folder: Path, name: object, file: str) -> Path:
    """The path of a file that the folder's `file` names. By its words alone: in the hub's cache files are links out."""
    steps = PurePosixPath(name.replace("\\", "/")) if isinstance(name, str) else None
    if steps is None or steps.is_absolute() or ".." in steps.parts or ":" in str(steps):
        raise CheckpointError(f"{folder}/{file}: names {name!r}; expected a path inside the checkpoint's own folder")
    return folder / steps


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All the tensors of a folder in Hugging Face's layout, by the names they have there."""
    if (folder / WEIGHTS).is_file():
        return dict(_safetensors(folder / WEIGHTS))
    if (folder / INDEX).is_file():
        return _together(folder / INDEX, (pair for part in _parts(folder, INDEX) for pair in _safetensors(part)))
    index = (folder / PICKLED_INDEX).is_file()
    pickles = _parts(folder, PICKLED_INDEX) if index else [folder / PICKLED] * (folder / PICKLED).is_file()
    if not pickles:
        names = ", ".join((WEIGHTS, INDEX, PICKLED))
        raise CheckpointError(f"{folder}: no weights in it; expected {names} or {PICKLED_INDEX}")
    sys.stderr.write(
        f"{folder / (PICKLED_INDEX if index else PICKLED)}: pickles, of which only tensors are read; "
        f"`mcontriever adopt` writes them anew as {WEIGHTS}, once for all\n"
    )
    return _together(folder, (pair for path in pickles for pair in _pickled(path).items()))


def unpickle(path: Path, allowed: tuple[type, ...] = ()) -> Any:
    """What torch wrote there: tensors in lists and dicts of plain values, and plain objects of the `allowed` classes.

    Whatever else the file holds is not called, nor imported: the file is refused.
    """
    try:
        # mapped, not read: next to the weights may lie an optimiser of twice their size
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a stranger's bytes make the unpickler stumble over
        # torch's own message is a page, of which a line tells; some of it is advice to run what is in the file
        told = re.search(r"GLOBAL ([\w.]*\w)", str(error)) or re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
        first = (str(error).splitlines() or [""])[0]
        said = told[1] if told else "" if "weights_only" in first else first
        said = said or type(error).__name__
        raise CheckpointError(f"{path}: damaged, or holds more than tensors ({said}); only tensors are read") from error


def named(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """Tensors of a model by the names of the bare one, in fp32; those that no vector goes through are left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = _HUB_PREFIX.sub("", name)
        if not _UNUSED.match(ours):
            # BERT's first checkpoints still have TensorFlow's names.
            ours = ours.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            if ours in found:
                raise CheckpointError(f"{origin}: its weights hold {ours} twice, under two names; is it one model?")
            if not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise CheckpointError(f"{origin}: its weights hold {ours} in {kind}, expected floating numbers")
            found[ours] = tensor.float()
    return found


def bare(name: str) -> str:
    """The name a checkpoint's file has for a weight of `Encoder.state_dict()`."""
    return name.removeprefix(MODEL)


def fill(encoder: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Put the weights into the encoder: every place gets one, every one has a place, shapes agree, all are numbers."""
    places = {bare(name): tensor for name, tensor in encoder.state_dict().items()}
    for what, names in (("lack", places.keys() - weights.keys()), ("have unknown", weights.keys() - places.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise CheckpointError(f"{origin}: its weights {what} {shown} ({len(names)} in all); is it another model?")
    for name, place in places.items():
        if weights[name].shape != place.shape:
            found, expected = tuple(weights[name].shape), tuple(place.shape)
            raise CheckpointError(f"{origin}: {name} has shape {found}, its config.json says {expected}")
        # one pass without a copy; only a sum that is none asks which: it may have run over
        if not weights[name].sum().isfinite() and not weights[name].isfinite().all():
            wrong = int((~weights[name].isfinite()).sum())
            raise CheckpointError(
                f"{origin}: {name} holds {wrong:,} values that are NaN or infinite; the file or its training is broken"
            )
    # taken as they lie: a gigabyte is not copied, and what is mapped from the file is read when it is used
    encoder.load_state_dict({name: weights[bare(name)] for name in encoder.state_dict()}, assign=True)


def _parts(folder: Path, index: str) -> list[Path]:
    """The files that an index names."""
    parts = read_json(folder / index).get("weight_map")
    if not (isinstance(parts, dict) and parts):
        told = str(parts)[:60]
        raise CheckpointError(f"{folder / index}: weight_map must say which file holds which weight, got {told!r}")
    return sorted({inside(folder, part, index) for part in parts.values()})


def _together(origin: Path, pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in found:
            raise CheckpointError(f"{origin}: {name} lies in two files of it; copy or download the folder again")
        found[name] = tensor
    return found


def _pickled(path: Path) -> dict[str, Tensor]:
    content = unpickle(path)
    if not isinstance(content, dict) or not all(map(_is_plain, content, content.values())):
        raise CheckpointError(f"{path}: expected tensors by name, neither sparse, quantised nor without content")
    return content


def _is_plain(name: object, value: object) -> bool:
    plain = isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    return isinstance(name, str) and plain


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (not a mapping)
                yield name, stream.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or incomplete ({error}); copy or download it again") from error
