"""Attention over packed sequences, because padding costs two fifths of a batch and a wrong mask shows no error.

Transformers' own attention, handed one long row of packed tokens, lets every sequence look into its neighbours without
a word. Here the layout of the row is a required argument, so a call that forgets it fails.

Letters: B sequences, M tokens of the longest, T tokens of all of them together, H heads, E dimensions of a head.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..pairs import Packed

NAME = "mcontriever_packed"
_VARLEN = "torch.nn.attention.varlen"  # torch 2.10 and later; it runs on CUDA alone, in half precision
# Torch's private operators: where one of them is missing, the attention is padded.
_flash: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_flash_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


@dataclass(frozen=True)
class Layout:
    """Where the sequences of one packed batch lie: worked out once, used by every layer."""

    boundaries: Tensor  # (B+1,) int32
    edges: tuple[int, ...]  # the same numbers, for the host
    longest: int

    @classmethod
    def of(cls, packed: Packed) -> Layout:
        """The layout of these sequences; its tensors lie where theirs do, and no device is waited for."""
        known = packed.known_lengths
        return cls(packed.cu_seqlens.to(torch.int32), (0, *accumulate(known)), max(known))

    @functools.cached_property
    def padding(self) -> tuple[Tensor, Tensor]:
        """Where each token goes in a padded batch laid flat, (T,), and the batch's mask, (B, M)."""
        lengths = np.diff(self.edges)
        mask = np.arange(self.longest) < lengths[:, None]
        device = self.boundaries.device
        return torch.from_numpy(np.flatnonzero(mask)).to(device), torch.from_numpy(mask).to(device)


def has_flash() -> bool:
    """Whether this torch has the CPU's flash kernel and its gradient."""
    return _flash is not None and _flash_backward is not None


def attend(qkv: Tensor, layout: Layout, *, scaling: float | None = None, dropout: float = 0.0) -> Tensor:
    """Queries, keys and values, (T, 3, H, E), to (T, H, E). Only the padded way knows dropout."""
    if not dropout and qkv.device.type == "cpu" and has_flash():
        return _EachSequence.apply(qkv, layout.edges, scaling)  # type: ignore[no-untyped-call, no-any-return]
    kernel = None if dropout else _varlen(qkv.device, qkv.dtype, qkv.shape[-1])
    if kernel is None:
        return _padded(qkv, layout, scaling, dropout)
    edges, longest = layout.boundaries, layout.longest
    return kernel(*qkv.unbind(1), edges, edges, longest, longest, scale=scaling)


class _EachSequence(torch.autograd.Function):
    """The CPU's flash kernel, a sequence at a time. In fp32: its bf16 backward takes three times as long.

    Written out because the gradient of a slice is a whole tensor of zeros: for 64 sequences autograd's own backward
    of this loop takes twice the time.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, edges: tuple[int, ...], scaling: float | None) -> Tensor:
        precise = qkv if qkv.dtype == torch.float64 else qkv.float()
        result, sums = _forward_each(precise, edges, scaling)
        ctx.save_for_backward(qkv, result, *sums)
        ctx.edges, ctx.scaling = edges, scaling
        return result.to(qkv.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        qkv, result, *sums = ctx.saved_tensors
        query, key, value = _by_head(qkv if qkv.dtype == torch.float64 else qkv.float())
        result, gradient = (tensor.to(query.dtype).transpose(0, 1)[None] for tensor in (result, gradient))
        gradients = torch.empty_like(qkv)
        for (start, stop), total in zip(pairwise(ctx.edges), sums, strict=True):
            at = slice(start, stop)
            inputs = (tensor[:, :, at] for tensor in (gradient, query, key, value, result))
            parts = _flash_backward(*inputs, total, 0.0, False, scale=ctx.scaling)
            for place, part in zip(gradients.unbind(1), parts, strict=True):
                place[at] = part[0].transpose(0, 1)
        return gradients, None, None


def attend_each(qkv: Tensor, layout: Layout, *, scaling: float | None = None) -> Tensor:
    """As `attend`, on the CPU, without gradients and in the precision of what is given."""
    return _forward_each(qkv, layout.edges, scaling)[0] if has_flash() else _padded(qkv, layout, scaling, 0.0)


def _forward_each(qkv: Tensor, edges: tuple[int, ...], scaling: float | None) -> tuple[Tensor, list[Tensor]]:
    """(T, 3, H, E) to (T, H, E), and what the backward pass wants of each sequence."""
    query, key, value = _by_head(qkv)
    result = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)
    sums = []
    for start, stop in pairwise(edges):
        at = slice(start, stop)
        part, total = _flash(query[:, :, at], key[:, :, at], value[:, :, at], scale=scaling)
        result[at] = part[0].transpose(0, 1)
        sums.append(total)
    return result, sums


def _by_head(qkv: Tensor) -> list[Tensor]:
    """(T, 3, H, E) to three times (1, H, T, E)."""
    return [part.transpose(0, 1)[None] for part in qkv.unbind(1)]


def _padded(qkv: Tensor, layout: Layout, scaling: float | None, dropout: float) -> Tensor:
    """As transformers does it: a padded batch under a mask. What packing saves in the attention is lost here."""
    rows, mask = layout.padding
    batch = qkv.new_zeros(mask.numel(), *qkv.shape[1:]).index_copy(0, rows, qkv)
    query, key, value = batch.view(*mask.shape, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)  # (B, H, M, E) each
    result = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None, None], dropout_p=dropout, scale=scaling
    )
    return result.transpose(1, 2).flatten(0, 1).index_select(0, rows)


@functools.cache
def _varlen(device: torch.device, dtype: torch.dtype, width: int) -> Callable[..., Tensor] | None:
    """Torch's kernel for packed sequences, where it can be used."""
    fits = dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256
    if not (fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        return None
    if not importlib.util.find_spec(_VARLEN):
        return None
    kernel: Callable[..., Tensor] = importlib.import_module(_VARLEN).varlen_attn
    return kernel if "scale" in inspect.signature(kernel).parameters else None  # its first version had no scale


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """What layers of transformers that we do not compute ourselves call: (1, H, T, E) three times to (1, T, H, E)."""
    qkv = torch.stack([tensor[0].transpose(0, 1) for tensor in (query, key, value)], dim=1)
    return attend(qkv, layout, scaling=scaling, dropout=dropout)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Make the packed attention known to transformers under `NAME`."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
