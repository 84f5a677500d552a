"""Checkpoints that others wrote: what their files say about their use, and their weights under our names.

Nothing is guessed here. What a folder does not say is asked for, and a weight that has no place, or a place that has no
weight, is an error: loading around it in silence is how Contriever's own fine-tuned weights came to be ignored.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import registry
from .contract import CheckpointError, Rules

WEIGHTS, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_CHOICES = {"pooling": ("mean", "cls"), "similarity": ("dot", "cosine")}
# Parts of a model that the vectors do not go through, and buffers that older versions of transformers saved.
_UNUSED = re.compile(r"(pooler|lm_head|cls)\.|embeddings\.(position_ids|token_type_ids)$")
_HUB_PREFIX = re.compile(r"^(roberta|bert)\.")


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON object (or list) of a checkpoint's folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; copy or download the folder again") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy or download the folder again") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path}: expected a JSON {kind.__name__}, got {str(content)[:60]!r}")
    return content


def find_rules(folder: Path, name: str, given: Rules) -> Rules:
    """How to use the checkpoint in `folder`: as the registry, its own files and then `given` say."""
    known = registry.find(name)
    if known:
        rules = known.rules
    elif (folder / "modules.json").is_file():
        rules = _sentence_transformers(folder)
    else:
        rules = Rules()
    rules = Rules(**{**rules, **given})  # type: ignore[typeddict-item]
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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder in Hugging Face's layout, named as in the bare model, in fp32."""
    if (folder / WEIGHTS).is_file():
        tensors = dict(_safetensors(folder / WEIGHTS))
    elif (folder / INDEX).is_file():
        parts = {_inside(folder, part, INDEX) for part in _weight_map(folder / INDEX).values()}
        tensors = {name: tensor for part in sorted(parts) for name, tensor in _safetensors(part)}
    elif (folder / PICKLED).is_file():
        tensors = _pickled(folder / PICKLED)
    else:
        raise CheckpointError(f"{folder}: no weights in it; expected {WEIGHTS}, {INDEX} or {PICKLED}")
    return {name: tensor.float() for name, tensor in _ours(tensors)}


def fill(model: torch.nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Put the weights into the model: every place gets one, every one has a place, and the shapes agree."""
    places = model.state_dict()
    for what, names in (("lack", places.keys() - weights.keys()), ("have unknown", weights.keys() - places.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise CheckpointError(f"{origin}: its weights {what} {shown} ({len(names)} in all); is it another model?")
    for name, place in places.items():
        if weights[name].shape != place.shape:
            found, expected = tuple(weights[name].shape), tuple(place.shape)
            raise CheckpointError(f"{origin}: {name} has shape {found}, its config.json says {expected}")
    model.load_state_dict(weights)


def _sentence_transformers(folder: Path) -> Rules:
    rules = Rules(normalise=False)
    for module in read_json(folder / "modules.json", list):
        said = module if isinstance(module, dict) else {}
        kind, place = said.get("type"), said.get("path")
        if not (isinstance(kind, str) and isinstance(place, str)):
            raise CheckpointError(
                f"{folder}/modules.json: a module must have a type and a path, got {str(module)[:60]!r}"
            )
        kind = kind.rpartition(".")[2]
        if kind == "Pooling":
            rules["pooling"] = _pooling(_inside(folder, place, "modules.json") / "config.json")
        elif kind == "Normalize":
            rules |= Rules(normalise=True, similarity="cosine")
        elif kind != "Transformer":
            raise CheckpointError(
                f"{folder}/modules.json: module {kind} cannot be loaded; known: Transformer, Pooling, Normalize"
            )
    _transformer(folder / "sentence_bert_config.json", rules)
    _use(folder / "config_sentence_transformers.json", rules)
    return rules


def _weight_map(path: Path) -> dict[str, Any]:
    parts = read_json(path).get("weight_map")
    if not (isinstance(parts, dict) and parts):
        raise CheckpointError(f"{path}: weight_map must say which file holds which weight, got {str(parts)[:60]!r}")
    return parts


def _inside(folder: Path, name: object, file: str) -> Path:
    """The path of a file that the folder's `file` names. By its words alone: in the hub's cache files are links out."""
    steps = PurePosixPath(name.replace("\\", "/")) if isinstance(name, str) else None
    if steps is None or steps.is_absolute() or ".." in steps.parts or ":" in str(steps):
        raise CheckpointError(f"{folder}/{file}: names {name!r}; expected a path inside the checkpoint's own folder")
    return folder / steps


def _pooling(path: Path) -> str:
    modes = [key for key, on in read_json(path).items() if key.startswith("pooling_mode_") and on is True]
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in names:
        raise CheckpointError(f"{path}: pooling {modes} cannot be loaded; known: {', '.join(names)}")
    return names[modes[0]]


def _transformer(path: Path, rules: Rules) -> None:
    said = read_json(path) if path.is_file() else {}
    if length := said.get("max_seq_length"):
        if not isinstance(length, int):
            raise CheckpointError(f"{path}: max_seq_length must be a whole number, got {length!r}")
        rules["query_max_length"] = rules["passage_max_length"] = length
    rules["lowercase"] = bool(said.get("do_lower_case", False))


def _use(path: Path, rules: Rules) -> None:
    said = read_json(path) if path.is_file() else {}
    prompts: Any = said.get("prompts") or {}
    if not (isinstance(prompts, dict) and all(isinstance(prompt, str) for prompt in prompts.values())):
        raise CheckpointError(f"{path}: prompts must be texts by name, got {str(prompts)[:60]!r}")
    rules["query_prefix"] = prompts.get("query", "")
    rules["passage_prefix"] = str(prompts.get("document", prompts.get("passage", "")))
    if said.get("similarity_fn_name"):
        rules["similarity"] = str(said["similarity_fn_name"])
        rules["normalise"] = rules["normalise"] or rules["similarity"] == "cosine"


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (not a mapping)
                yield name, stream.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or incomplete ({error}); copy or download it again") from error


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged, or holds more than tensors ({why}); only tensors are read") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected tensors by name")
    return content


def _ours(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        bare = _HUB_PREFIX.sub("", name)
        if not _UNUSED.match(bare):
            # BERT's first checkpoints still have TensorFlow's names.
            yield (
                bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"),
                tensor,
            )
