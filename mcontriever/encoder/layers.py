"""Transformers' layers computed our way: the same weights under the same names, so any tool opens our checkpoints.

One product makes queries, keys and values, tokens stay packed, and the attention is ours. Only the forward pass of a
layer is replaced; embeddings, weights and configuration remain transformers'. Letters: T tokens, D dimensions, H
heads, E dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from .attention import Layout, attend
from .kernels import add_norm, linear


def _forward(layer: Any, hidden: Tensor, layout: Layout) -> Tensor:
    """One layer, its normalisation after each half: (1, T, D) to (1, T, D)."""
    rows, attention = hidden[0], layer.attention.self
    parts = attention.query, attention.key, attention.value
    together = linear(rows, torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
    qkv = together.view(len(rows), 3, attention.num_attention_heads, attention.attention_head_size)  # (T, 3, H, E)
    dropout = attention.dropout.p if layer.training else 0.0
    context = attend(qkv, layout, scaling=attention.scaling, dropout=dropout).flatten(1)
    rows = _half(layer.attention.output, context, rows)
    inner = linear(rows, layer.intermediate.dense.weight, layer.intermediate.dense.bias)
    return _half(layer.output, layer.intermediate.intermediate_act_fn(inner), rows)[None]


def _half(output: Any, inner: Tensor, residual: Tensor) -> Tensor:
    """What ends both halves of a layer: a product, dropout, the residual, normalisation."""
    rows = linear(inner, output.dense.weight, output.dense.bias)
    return add_norm(rows, residual, output.LayerNorm, output.dropout.p if output.training else 0.0)


# A class of its own for each, because transformers recognises layers by their class.
class PackedXlmRobertaLayer(XLMRobertaLayer):  # type: ignore[misc]
    """XLM-R's layer on packed tokens."""

    _z3_leaf = True  # ZeRO-3 gathers a layer whole: it looks for calls of the modules inside, and there are none

    def forward(self, hidden_states: Tensor, *_: Any, layout: Layout, **__: Any) -> Tensor:
        """(1, T, D) to (1, T, D)."""
        return _forward(self, hidden_states, layout)


class PackedBertLayer(BertLayer):  # type: ignore[misc]
    """BERT's layer on packed tokens."""

    _z3_leaf = True

    def forward(self, hidden_states: Tensor, *_: Any, layout: Layout, **__: Any) -> Tensor:
        """(1, T, D) to (1, T, D)."""
        return _forward(self, hidden_states, layout)


_OURS = {XLMRobertaLayer: PackedXlmRobertaLayer, BertLayer: PackedBertLayer}


def attentions(model: nn.Module) -> Iterator[Any]:
    """The modules of a model that hold its attention's settings, its dropout among them."""
    return (module for module in model.modules() if hasattr(module, "attention_head_size"))


def replace(model: nn.Module) -> None:
    """Let the layers of a model that we know be computed our way, in place; others keep their own."""
    for module in model.modules():
        module.__class__ = _OURS.get(type(module), type(module))  # type: ignore[assignment]
