"""The one encoder of queries and passages, in training and in use: packed token ids in, one vector a sequence out.

The layers are transformers' own, so that any tool can open our checkpoints; ours are the packed layout and the pooling.
Letters: B sequences, T tokens of all of them together, D dimensions, N texts.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
import typing
from collections.abc import Iterator
from typing import Any

import torch
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
from ..errors import SettingsError, UsageError
from ..pairs import Packed
from ..settings import in_range
from . import attention, inference, layers, pooling
from .contract import CheckpointError, Contract, Rules, first_position
from .encoding import Encodes

attention.register()

ARCHITECTURES = {
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
    "xlm-roberta-xl": (XLMRobertaXLConfig, XLMRobertaXLModel),
    "bert": (BertConfig, BertModel),
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What training knows."""
FOR_USE = (*PRECISIONS, "int8")


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


class _Turn:
    """A lock, and a new one wherever it is copied or pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Turn], tuple[()]]:
        return _Turn, ()


class Encoder(Encodes, nn.Module):
    """Texts to vectors, by the rules of a contract; `Encodes` has the methods that take texts."""

    source: str = ""
    """The folder or hub name this was loaded from; empty for one that was not."""
    precision: str = "fp32"
    """What the layers compute in: fp32, bf16, fp16, or int8 (for use on a CPU only); weights and vectors stay fp32."""
    _frozen: inference.Frozen | None = None
    _using: inference.Frozen | None = None  # only while texts are encoded: a training step never sees it

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
        self.projection = nn.Linear(config.hidden_size, contract.dimension) if contract.projection else None
        self.attention_dropout = 0.0
        self._turn = _Turn()

    def __getstate__(self) -> dict[str, Any]:
        """Without the frozen layers, which are made again where they are needed."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_frozen", "_using")}

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
        memo[id(self._frozen)] = None
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
        given = {"input_ids": packed.ids[None], "position_ids": self._positions(packed)[None]}
        if self._using is not None:
            hidden = self._using(self.model.embeddings(**given)[0], layout)  # type: ignore[operator]
        else:
            with self._autocast():
                hidden = self.model(**given, layout=layout).last_hidden_state[0]  # (T, D)
        vectors = pooling.pool(hidden, packed, self.contract.pooling)
        return pooling.finish(vectors, self.projection, self.contract)

    def _autocast(self) -> torch.autocast:
        """Opened inside `forward`, because DeepSpeed turns off an autocast that it finds open around the engine."""
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision} is for encode_queries, encode_passages and stream alone")
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

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        with self._turn.lock:  # two threads would each put back what the other still needs
            was_training = self.training
            self.eval()
            try:
                self._using = self._freeze()
                # One autocast for all batches: its copies of the weights are made once and kept until it ends.
                with torch.no_grad(), contextlib.nullcontext() if self._using else self._autocast():
                    yield
            finally:
                self._using = None
                self.train(was_training)

    def _freeze(self) -> inference.Frozen | None:
        """The layers made ready for use, kept from call to call until a weight changes; None where there is no gain."""
        if self.device.type != "cpu" or not inference.can_freeze(self.model, self.precision):
            inference.refuse_int8(self.precision, self.device)
            if self.precision == "int8":
                raise UsageError("precision int8 is for layers of XLM-R or BERT with the exact GELU; take bf16 or fp32")
            return None
        if self._frozen is None or not self._frozen.holds(self.model, self.precision):
            self._frozen = inference.Frozen(self.model, self.precision)
        return self._frozen

    def train(self, mode: bool = True) -> Encoder:
        """See `torch.nn.Module.train`. What was made ready for use is let go: weights are about to change."""
        if mode:
            self.release()
        return super().train(mode)

    def release(self) -> None:
        """Let go of the second copy of the layers that encoding texts on a CPU made, as large as they are.

        The next texts make it anew: call this too after a write to the weights that torch does not count (`.data`, or
        under torch.inference_mode()).
        """
        self._frozen = None
