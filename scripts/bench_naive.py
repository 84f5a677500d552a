"""A step of MoCo as it is usually written, and as the published code writes it: what our training is timed against.

Padded batches under an attention mask, transformers' own attention with its dropout, dropout in the key encoder too,
the queue cloned for its scores, the momentum average a parameter at a time, torch's AdamW as it comes. Nothing here
is slow on purpose. Letters: B pairs, M tokens of the longest sequence, D dimensions, K keys in the queue.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcontriever.pairs import Packed, PairBatch


def padded(packed: Packed, pad: int) -> tuple[Tensor, Tensor]:
    """The same sequences as a padded batch: ids and mask, (B, M)."""
    ids = nn.utils.rnn.pad_sequence(packed.split(), batch_first=True, padding_value=pad)
    return ids, torch.arange(ids.shape[1], device=ids.device) < packed.lengths[:, None]


class NaiveMoco:
    """Query encoder, key encoder, queue and optimiser; `step` takes a batch of pairs and returns its loss."""

    def __init__(
        self, model: nn.Module, queue: Tensor, *, temperature: float, momentum: float, optim: dict[str, Any]
    ) -> None:
        self.query, self.key, self.queue = model.train(), copy.deepcopy(model).train(), queue.T.contiguous()  # (D, K)
        self.temperature, self.momentum, self.pointer = temperature, momentum, 0
        self.optimizer = torch.optim.AdamW(self.query.parameters(), **optim)
        self.pad = int(model.config.pad_token_id)  # type: ignore[union-attr, arg-type]
        self.bf16 = False

    def step(self, batch: PairBatch) -> float:
        """One step of training."""
        with torch.autocast(batch.group.device.type, torch.bfloat16, enabled=self.bf16):
            query = self.embed(self.query, batch.query)
            with torch.no_grad():
                for ours, theirs in zip(self.query.parameters(), self.key.parameters(), strict=True):
                    theirs.data = theirs.data * self.momentum + ours.data * (1.0 - self.momentum)
                key = self.embed(self.key, batch.passage)
            positive = torch.einsum("nc,nc->n", query, key)[:, None]
            negative = torch.einsum("nc,ck->nk", query, self.queue.clone().detach())  # (B, K)
            scores = torch.cat([positive, negative], dim=1) / self.temperature
            loss = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.query.zero_grad()
        self.queue[:, self.pointer : self.pointer + len(key)] = key.T
        self.pointer = (self.pointer + len(key)) % self.queue.shape[1]
        return float(loss.detach())

    def embed(self, model: nn.Module, packed: Packed) -> Tensor:
        """Mean of the hidden states, (B, D)."""
        ids, mask = padded(packed, self.pad)
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        vectors: Tensor = hidden.sum(dim=1) / mask.sum(dim=1)[..., None]
        return vectors
