"""Attention over packed sequences, because padding costs two fifths of a batch and a wrong mask shows no error.

Transformers' own attention, handed one long row of packed tokens, lets every sequence look into its neighbours without
a word. Here the layout of the row is a required argument, so a call that forgets it fails.

Letters: B sequences, T tokens of all of them together, H heads, E dimensions of a head, N sequences of a group and M
tokens of the longest one in it.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "mcontriever_packed"
_VARLEN = "torch.nn.attention.varlen"  # torch 2.10 and later; it runs on CUDA alone, in half precision
_STEP = 8  # lengths are rounded up to a multiple of this to share a group: measured best of 1, 4, 8, 16 and all in one


@dataclass(frozen=True)
class Group:
    """Sequences of nearly equal length: rows `start` to `stop` of the gathered tokens, N of them, M wide."""

    start: int
    stop: int
    count: int
    width: int
    mask: Tensor | None  # (N, 1, 1, M), true where there is a token; None when nothing is padded


@dataclass(frozen=True)
class Layout:
    """Where the sequences of one packed batch lie: worked out once, used by every layer."""

    boundaries: Tensor  # (B+1,) int32
    longest: int
    gather: Tensor  # (sum of N*M,) tokens in the order of the groups; padding points at token 0
    scatter: Tensor  # (T,) where each token went
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, lengths: Tensor) -> Layout:
        """Group the sequences of these lengths, (B,), by length; the tensors lie where `lengths` does."""
        sizes = lengths.cpu().numpy()
        starts = np.concatenate([[0], np.cumsum(sizes)])
        rounded = -(-sizes // _STEP)
        order = np.argsort(rounded, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(rounded[order])) + 1)
        gather, groups, at = [], [], 0
        scatter = np.empty(starts[-1], dtype=np.int64)
        for rows in members:
            width = int(sizes[rows].max())
            real = np.arange(width) < sizes[rows, None]  # (N, M)
            tokens = np.where(real, starts[rows, None] + np.arange(width), 0)
            scatter[tokens[real]] = at + np.flatnonzero(real)
            mask = None if real.all() else torch.from_numpy(real)[:, None, None].to(lengths.device)
            groups.append(Group(at, at + tokens.size, len(rows), width, mask))
            gather.append(tokens.ravel())
            at += tokens.size
        return cls(
            torch.from_numpy(starts.astype(np.int32)).to(lengths.device),
            int(sizes.max()),
            torch.from_numpy(np.concatenate(gather)).to(lengths.device),
            torch.from_numpy(scatter).to(lengths.device),
            tuple(groups),
        )


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
    """What transformers calls in every layer: (1, H, T, E) three times to (1, T, H, E).

    Attention dropout is left out: no packed kernel has it. Dropout on hidden states is the model's and stays.
    """
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, H, E)
    if q.is_cuda and q.dtype != torch.float32 and importlib.util.find_spec(_VARLEN):
        kernel = importlib.import_module(_VARLEN).varlen_attn
        edges, longest = layout.boundaries, layout.longest
        return kernel(q, k, v, edges, edges, longest, longest, scale=scaling)[None], None
    return _by_groups(q, k, v, layout, scaling)[None], None


def _by_groups(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """(T, H, E) three times to (T, H, E): sequences of about one length are padded to it and go together."""
    dtype = query.dtype
    # On CPU the bf16 backward of this kernel takes 2.4 times as long as the fp32 one and its forward no less.
    precise = torch.float32 if query.device.type == "cpu" else dtype
    q, k, v = (tensor.to(precise).index_select(0, layout.gather) for tensor in (query, key, value))
    results = []
    with torch.autocast(query.device.type, enabled=False):
        for group in layout.groups:
            shape = (group.count, group.width, *q.shape[1:])
            a, b, c = (tensor[group.start : group.stop].view(shape).transpose(1, 2) for tensor in (q, k, v))
            result = F.scaled_dot_product_attention(a, b, c, attn_mask=group.mask, scale=scaling)  # (N, H, M, E)
            results.append(result.transpose(1, 2).reshape(-1, *q.shape[1:]))
    return torch.cat(results).index_select(0, layout.scatter).to(dtype)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def register() -> None:
    """Make the packed attention known to transformers under `NAME`."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
