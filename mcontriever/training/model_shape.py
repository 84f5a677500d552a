"""How many weights a model has, and of which kind, without making one: from a name, a folder or the recipe's shape."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..corpus import Shards
from ..encoder import ModelSettings
from ..encoder.model import ARCHITECTURES
from ..errors import SettingsError, did_you_mean
from .settings import TrainSettings

_XLMR = {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_XL = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 10_240}
_MBERT = {"vocab_size": 119_547, "max_position_embeddings": 512, "type_vocab_size": 2}
# Shapes of checkpoints on the hub, by the last part of their names: a plan must not download gigabytes.
KNOWN: dict[str, tuple[str, dict[str, int]]] = {
    "xlm-roberta-base": ("xlm-roberta", _XLMR | _BASE),
    "xlm-roberta-large": ("xlm-roberta", _XLMR | _LARGE),
    "xlm-roberta-xl": ("xlm-roberta-xl", _XLMR | _XL | {"vocab_size": 250_880}),
    "multilingual-e5-base": ("xlm-roberta", _XLMR | _BASE),
    "multilingual-e5-large": ("xlm-roberta", _XLMR | _LARGE),
    "bert-base-multilingual-cased": ("bert", _MBERT | _BASE),
    "mcontriever": ("bert", _MBERT | _BASE),
    "mcontriever-msmarco": ("bert", _MBERT | _BASE),
}
_CONFIGURED = {  # settings by their names in a model's configuration
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "dropout": "hidden_dropout_prob",
}


@dataclass(frozen=True)
class ModelShape:
    """A model's weights, counted."""

    config: Any
    sizes: tuple[int, ...]  # elements of each weight
    multiplied: int  # elements of those that are cast to half precision: the linear layers
    layer: int  # elements of the largest layer
    table: int  # elements of the largest embedding table

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Counted on a model that has shapes and no memory."""
        with torch.device("meta"):
            model = ARCHITECTURES[config.model_type][1](config, add_pooling_layer=False)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
        return cls(
            config=config,
            sizes=tuple(weight.numel() for weight in model.parameters()),
            multiplied=sum(_elements(module) for module in linear),
            layer=max(_elements(module) for module in layers),
            table=max(_elements(module) for module in tables),
        )

    @property
    def weights(self) -> int:
        """All elements."""
        return sum(self.sizes)


def config_of(recipe: TrainSettings) -> Any:
    """The configuration that the recipe's model has or would have."""
    if not recipe.init:
        return _configured("xlm-roberta", _of_settings(recipe.model) | {"vocab_size": _vocabulary(recipe)})
    name, file = recipe.init.partition("@")[0], Path(recipe.init) / "config.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("model_type") in ARCHITECTURES:
            return ARCHITECTURES[content["model_type"]][0].from_dict(content)
        raise SettingsError(f"{file}: model_type {content.get('model_type')!r} cannot be trained")
    known = KNOWN.get(name.rpartition("/")[2])
    if known is None:
        near = did_you_mean(name, KNOWN)
        raise SettingsError(f"init {name}: neither a checkpoint's folder nor a shape that --plan knows; {near}")
    return _configured(*known)


def require_shape(recipe: TrainSettings, config: Any, normalise: bool | None = None) -> None:
    """Complain of what [model] asks for and init does not have, for it would change nothing; a default asks nothing."""
    if not recipe.init:
        return
    there = {name: getattr(config, key) for name, key in _CONFIGURED.items()} | {"normalise": normalise}
    for field in dataclasses.fields(ModelSettings):
        asked, has = getattr(recipe.model, field.name), there.get(field.name)
        if has is not None and asked != field.default and asked != has:
            raise SettingsError(
                f"model.{field.name} is {asked}, but init {recipe.init} has {has} and keeps its shape: give that, or "
                "leave out init for a new model"
            )


def _configured(architecture: str, facts: Mapping[str, Any]) -> Any:
    if architecture not in ARCHITECTURES:
        raise SettingsError(f"{architecture} cannot be trained; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture][0](**{"attention_probs_dropout_prob": 0.0, **facts})


def _of_settings(model: ModelSettings) -> dict[str, Any]:
    return {key: getattr(model, name) for name, key in _CONFIGURED.items()} | {"type_vocab_size": 1}


def _vocabulary(recipe: TrainSettings) -> int:
    if recipe.unlabelled.shards:
        return Shards.open(recipe.unlabelled.shards, verify=False).tokenizer().vocab_size
    return recipe.planning.vocabulary


def _elements(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
