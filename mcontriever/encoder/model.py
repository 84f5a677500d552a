"""The one encoder of queries and passages, in training and in use: packed token ids in, one vector a sequence out.

The layers are transformers' own, so that any tool can open our checkpoints; ours are the packed layout and the pooling.
Letters: B sequences, T tokens of all of them together, D dimensions, N texts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

from ..corpus.tokenizer import Tokenizer
from ..errors import DataError, SettingsError
from ..pairs import Packed, pack
from ..settings import in_range
from . import attention, layers
from .contract import CheckpointError, Contract, Rules, first_position

attention.register()

ARCHITECTURES = {
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
    "xlm-roberta-xl": (XLMRobertaXLConfig, XLMRobertaXLModel),
    "bert": (BertConfig, BertModel),
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The shape of a new encoder, of XLM-R's kind."""

    layers: int = 4
    """how many transformer layers"""
    hidden: int = 256
    """dimensions of a token, and of the vectors"""
    heads: int = 4
    """attention heads; they share the dimensions evenly"""
    intermediate: int = 1024
    """dimensions inside a layer's feed-forward part"""
    max_positions: int = 514
    """positions; XLM-R never uses the first two, so this is the longest sequence plus two"""
    dropout: float = 0.1
    """dropout on hidden states while training"""
    attention_dropout: float = 0.0
    """dropout on attention weights while training, as published XLM-R has it (0.1); no packed kernel knows it, so
    above 0 the attention is computed padded, and training is slower. Also of a model that training begins from"""
    normalise: bool = False
    """whether vectors have length 1, compared by cosine; Contriever's are as they come, compared by dot product"""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "intermediate"):
            in_range(f"model.{name}", getattr(self, name), 1, 1_000_000)
        in_range("model.max_positions", self.max_positions, 5, 1_000_000)
        in_range("model.dropout", self.dropout, 0, 1, high_open=True)
        in_range("model.attention_dropout", self.attention_dropout, 0, 1, high_open=True)
        if self.hidden % self.heads:
            raise SettingsError(f"model.heads must divide model.hidden ({self.hidden}) evenly, got {self.heads}")


class Encoder(nn.Module):
    """Texts to vectors, by the rules of a contract."""

    source: str = ""
    """The folder or hub name this was loaded from; empty for one that was not."""
    precision: str = "fp32"
    """fp32, or bf16 or fp16 to compute the layers in autocast; weights and vectors stay fp32."""

    def __init__(self, config: Any, contract: Contract, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.model_type not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise CheckpointError(f"model_type {config.model_type!r} cannot be loaded; known: {known}")
        contract.verify(tokenizer, config)
        self.config, self.contract, self.tokenizer = config, contract, tokenizer
        self.model: nn.Module = ARCHITECTURES[config.model_type][1](config, add_pooling_layer=False)
        self.model.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        layers.replace(self.model)
        self.attention_dropout = 0.0

    @classmethod
    def random(
        cls, settings: ModelSettings, tokenizer: Tokenizer, *, seed: int = 0, **rules: typing.Unpack[Rules]
    ) -> Encoder:
        """A new encoder with weights drawn from `seed`; `rules` change its contract (pooling, max lengths, …)."""
        config = XLMRobertaConfig(
            vocab_size=tokenizer.vocab_size,
            num_hidden_layers=settings.layers,
            hidden_size=settings.hidden,
            num_attention_heads=settings.heads,
            intermediate_size=settings.intermediate,
            max_position_embeddings=settings.max_positions,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.attention_dropout,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            bos_token_id=tokenizer.bos,
            pad_token_id=tokenizer.pad,
            eos_token_id=tokenizer.eos,
        )
        similarity = "cosine" if settings.normalise else "dot"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rules = {"normalise": settings.normalise, "similarity": similarity, **rules}
            made = cls(config, Contract.of(config, tokenizer, **rules), tokenizer)
        made.attention_dropout = settings.attention_dropout
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        """A copy with weights of its own; the tokenizer, tens of megabytes that never change, is shared."""
        memo[id(self.tokenizer)] = self.tokenizer
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    @property
    def attention_dropout(self) -> float:
        """Dropout on attention weights while training. A loaded model's own figure is not taken: see ModelSettings."""
        return float(next(layers.attentions(self.model)).dropout.p)

    @attention_dropout.setter
    def attention_dropout(self, probability: float) -> None:
        for module in layers.attentions(self.model):
            module.dropout.p = probability

    def checkpoint_activations(self, on: bool) -> None:
        """Whether training computes each layer's forward pass again in the backward pass, to save its memory."""
        model: Any = self.model
        word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # renamed in 5.23
        switch = getattr(model, f"{word}_checkpointing_{'enable' if on else 'disable'}")
        switch({"use_reentrant": False}) if on else switch()

    def forward(self, packed: Packed) -> Tensor:
        """B packed sequences, special tokens included, to (B, D) in fp32 whatever the weights are in."""
        layout = attention.Layout.of(packed)
        with self._autocast():
            hidden = self.model(
                input_ids=packed.ids[None], position_ids=self._positions(packed)[None], layout=layout
            ).last_hidden_state[0]  # (T, D)
        starts = packed.cu_seqlens[:-1]
        if self.contract.pooling == "cls":
            vectors = hidden[starts].float()
        else:
            # not index_add_, whose sums on a GPU come out in another order every time
            # unsafe: no look at the lengths, for which a GPU would be waited for
            vectors = torch.segment_reduce(hidden.float(), "mean", lengths=packed.lengths, axis=0, unsafe=True)
        return F.normalize(vectors, dim=-1) if self.contract.normalise else vectors

    def _autocast(self) -> torch.autocast:
        """Opened inside `forward`, because DeepSpeed turns off an autocast that it finds open around the engine."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _positions(self, packed: Packed) -> Tensor:
        """Each token's position in its own sequence, (T,), as the architecture counts."""
        starts = packed.cu_seqlens[:-1].repeat_interleave(packed.lengths, output_size=len(packed.ids))
        return torch.arange(len(packed.ids), device=packed.ids.device) - starts + first_position(self.config)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @overload
    def encode_queries(
        self, texts: Sequence[str], *, batch_tokens: int = ..., as_numpy: Literal[True] = ...
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_queries(self, texts: Sequence[str], *, batch_tokens: int = ..., as_numpy: Literal[False]) -> Tensor: ...
    def encode_queries(
        self, texts: Sequence[str], *, batch_tokens: int = 4096, as_numpy: bool = True
    ) -> NDArray[np.float32] | Tensor:
        """Queries to (N, D) in their order. A forward pass takes about `batch_tokens` tokens, sorted by length."""
        _refuse_string(texts)
        prepared = []
        for row, text in enumerate(texts):
            _not_empty(_checked(text, f"query {row}"), f"query {row}")
            prepared.append(self.contract.query_text(text))
        vectors = self._encode(prepared, self.contract.query_max_length, batch_tokens)
        return vectors.numpy() if as_numpy else vectors

    @overload
    def encode_passages(
        self, passages: Sequence[str | tuple[str, str]], *, batch_tokens: int = ..., as_numpy: Literal[True] = ...
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_passages(
        self, passages: Sequence[str | tuple[str, str]], *, batch_tokens: int = ..., as_numpy: Literal[False]
    ) -> Tensor: ...
    def encode_passages(
        self, passages: Sequence[str | tuple[str, str]], *, batch_tokens: int = 4096, as_numpy: bool = True
    ) -> NDArray[np.float32] | Tensor:
        """Passages, texts or (title, text) pairs, to (N, D) in their order; see `encode_queries`."""
        _refuse_string(passages)
        prepared = []
        for row, passage in enumerate(passages):
            title, text = passage if isinstance(passage, tuple | list) and len(passage) == 2 else ("", passage)
            _checked(text, f"passage {row}", "a text or a (title, text) pair")
            _checked(title, f"passage {row}'s title")
            _not_empty(title + text, f"passage {row}")
            prepared.append(self.contract.passage_text(text, title))
        vectors = self._encode(prepared, self.contract.passage_max_length, batch_tokens)
        return vectors.numpy() if as_numpy else vectors

    def _encode(self, texts: list[str], max_length: int, batch_tokens: int) -> Tensor:
        vectors = torch.empty(len(texts), self.contract.dimension)
        sequences = self.tokenizer.encode(texts) if texts else []
        # Longest first: what does not fit into memory fails at once, not after an hour.
        order = sorted(range(len(texts)), key=lambda row: -len(sequences[row]))
        with self._inference():
            for rows in _batches(order, [min(len(ids) + 2, max_length) for ids in sequences], batch_tokens):
                chosen = [sequences[row] for row in rows]
                packed = pack(chosen, self.tokenizer.bos, self.tokenizer.eos, max_length).to(self.device)
                vectors[rows] = self(packed).cpu()
        return vectors

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            # One autocast for all batches: its copies of the weights are made once and kept until it ends.
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self.train(was_training)


def _batches(order: list[int], lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cut `order` where the next sequence would pass the budget; one longer than the budget goes alone."""
    batch: list[int] = []
    total = 0
    for row in order:
        if batch and total + lengths[row] > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += lengths[row]
    if batch:
        yield batch


def _checked(text: object, what: str, expected: str = "a text") -> str:
    if not isinstance(text, str):
        raise DataError(f"{what} is {text!r}; expected {expected}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a JSON escape can spell half of a character; the tokenizer panics over it
        where = f"{text[error.start]!r} at character {error.start}"
        raise DataError(f"{what} holds half of a surrogate pair, {where}; mend the text") from error
    return text


def _not_empty(text: str, what: str) -> str:
    if not text.strip():
        raise DataError(f"{what} is empty; leave it out or give it a text (counted from 0)")
    return text


def _refuse_string(texts: object) -> None:
    if isinstance(texts, str):
        raise DataError(f"expected a list of texts, got one text {texts[:40]!r}; write [text]")
