"""How much memory a forward and backward pass takes beside the weights: measured here, small, and scaled up.

A formula would have to follow every change of the encoder. Instead the encoder runs once on the CPU with its layers
made narrower by a whole factor, heads and all: every tensor of a layer but its weights grows with the number of tokens
and with the width, so the factor leads back. Letters: T tokens, B queries, C candidates.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..corpus import Tokenizer
from ..encoder import Contract, Encoder
from ..objectives import ObjectiveSettings, info_nce, margin_loss, moco_loss, moco_margin_loss
from ..pairs import Packed

_TOKENS, _LENGTH = 1024, 64  # enough that activations outweigh everything else in a narrow layer
_WIDTH = 64


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block and still alive; `most` is the largest there were."""

    def __init__(self, apart: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in apart}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def bytes_per_token(config: Any, precision: str, *, checkpointing: bool = False) -> float:
    """Of a forward and backward pass of the encoder, at their largest."""
    few, many = (_peak_by_tokens(config, layers, precision, checkpointing) for layers in (2, 3))
    narrower = config.hidden_size / _narrow(config, 1).hidden_size
    return float(narrower * (few + (config.num_hidden_layers - 2) * (many - few)))


def bytes_per_score(settings: ObjectiveSettings) -> float:
    """Of a loss and its backward pass, for each of its B x C scores, at their largest."""
    rows, fewer, more = 8, 4096, 8192
    return (_loss_peak(settings, rows, more) - _loss_peak(settings, rows, fewer)) / (rows * (more - fewer))


def _peak_by_tokens(config: Any, layers: int, precision: str, checkpointing: bool) -> float:
    encoder = _stand_in(_narrow(config, layers), precision)
    if checkpointing:
        encoder.checkpoint_activations(True)
    peaks = []
    for count in (_TOKENS, 2 * _TOKENS):
        packed = Packed(torch.full((count,), 7), torch.full((count // _LENGTH,), _LENGTH))
        with LiveBytes(encoder.parameters()) as live:
            vectors: Tensor = encoder(packed)
            vectors.sum().backward()  # type: ignore[no-untyped-call]
        peaks.append(live.most)
        encoder.zero_grad(set_to_none=True)
    return float((peaks[1] - peaks[0]) / _TOKENS)


def _narrow(config: Any, layers: int) -> Any:
    """The same architecture with fewer heads of the same size and everything else in proportion."""
    whole = config.num_attention_heads
    heads = max(1, whole * _WIDTH // config.hidden_size)
    while config.intermediate_size * heads % whole:
        heads += 1
    small = copy.deepcopy(config)
    small.num_attention_heads, small.num_hidden_layers = heads, layers
    small.max_position_embeddings = _LENGTH + 2  # two that XLM-R never uses
    small.hidden_size = config.hidden_size * heads // whole
    small.intermediate_size = config.intermediate_size * heads // whole
    return small


def _stand_in(config: Any, precision: str) -> Encoder:
    """Random weights over a tokenizer that is there only because an encoder has one."""
    tokenizer = Tokenizer.train(["a tiny text, made of letters and of nothing else 0123456789"] * 4, 34)
    config.vocab_size = tokenizer.vocab_size
    config.bos_token_id, config.pad_token_id, config.eos_token_id = tokenizer.bos, tokenizer.pad, tokenizer.eos
    made = Encoder(config, Contract.of(config, tokenizer, pooling="mean", similarity="dot", normalise=False), tokenizer)
    made.precision = precision
    return made.train()


def _loss_peak(settings: ObjectiveSettings, rows: int, candidates: int) -> int:
    query, others = torch.randn(rows, 4).requires_grad_(), torch.randn(candidates, 4)
    group, groups = torch.arange(rows), torch.arange(candidates)
    margin: dict[str, Any] = {"margin": settings.margin, "hardest": settings.margin_over == "hardest"}
    shares: dict[str, Any] = {"temperature": settings.temperature, "label_smoothing": settings.label_smoothing}
    chosen, is_margin = (margin, True) if settings.loss == "margin" else (shares, False)
    with LiveBytes([query, others, group, groups]) as live:
        if settings.kind == "moco":
            of_queue = moco_margin_loss if is_margin else moco_loss
            chosen |= {"query_group": group, "queue_group": groups, "mask_same_group": settings.mask_same_group}
            contrast = of_queue(query, query.detach(), others, **chosen)
        else:
            of_batch = margin_loss if is_margin else info_nce
            chosen |= {"query_group": group, "passage_group": groups} if settings.mask_same_group else {}
            contrast = of_batch(query, others, **chosen)
        contrast.loss.backward()  # type: ignore[no-untyped-call]
    return int(live.most)
