"""The layers for use without gradients on a CPU, where products fused with what follows them pay.

Weights are packed for oneDNN once and the hidden states stay in the chosen precision from end to end; training's layers
do neither, because their weights change and their gradients need more. `int8` rounds every token's activations by a
scale of its own, so that a text's vector does not depend on the texts beside it.
Letters: T tokens, D and N dimensions, H heads, E dimensions of a head.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import UsageError
from . import units
from .attention import Layout, attend_each
from .layers import PackedBertLayer, PackedXlmRobertaLayer

_ROWS = 1024  # rows of a product, as oneDNN lays weights out for
_UNSIGNED_ZERO = 128  # for oneDNN the activations are unsigned: with signed ones its product is 4000 times slower


class _Updates:
    """How often any optimizer of this process has stepped: fused ones change weights without torch counting it."""

    count = 0

    @classmethod
    def add(cls, *_: object) -> None:
        cls.count += 1


register_optimizer_step_post_hook(_Updates.add)


class _Fused:
    """oneDNN's product in one precision: (T, D) to (T, N)."""

    step = 2**31  # rows at a time: all of them, for one product is all there is

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _ROWS)
        self.bias = bias.to(dtype)

    def __call__(self, rows: Tensor, then: str = "none") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, then, [], "none")  # type: ignore[no-any-return]

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]


class _Int8:
    """A product of rows and weights rounded to 8 bits, each row and column by a scale of its own: (T, D) to (T, N)."""

    step = _ROWS  # so that what lies between its many small steps stays in the cache

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127  # (N,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, [_ROWS, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias, self.dtype = bias.to(dtype), dtype

    def __call__(self, rows: Tensor, then: str = "none") -> Tensor:
        largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).float()
        scale = largest.clamp_min(torch.finfo(torch.float32).tiny) / 127  # (T, 1)
        # by way of signed numbers, because torch has no fast conversion to unsigned ones
        signed = rows.to(torch.float32, copy=True).mul_(1 / scale).round_().to(torch.int8)
        unsigned = signed.view(torch.uint8).bitwise_xor_(_UNSIGNED_ZERO)
        product = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, _UNSIGNED_ZERO, self.weight, self.scale, self.zeros, None, 1.0, 0, self.dtype, "none", [], ""
        )
        result = torch.addcmul(self.bias, product, scale.to(self.dtype))
        return F.gelu(result) if then == "gelu" else result

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self(rows).add_(residual)


class _Layer:
    """One post-norm layer."""

    def __init__(self, layer: Any, make: Any, dtype: torch.dtype) -> None:
        attention = layer.attention.self
        parts = attention.query, attention.key, attention.value
        self.qkv = make(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        self.out = make(*_of(layer.attention.output.dense))
        self.up, self.down = make(*_of(layer.intermediate.dense)), make(*_of(layer.output.dense))
        self.norms = [_norm(norm, dtype) for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm)]
        self.heads, self.width = attention.num_attention_heads, attention.attention_head_size
        self.scaling = attention.scaling

    def __call__(self, rows: Tensor, layout: Layout) -> Tensor:
        step = self.qkv.step
        qkv = _joined([self.qkv(part) for part in rows.split(step)]).view(len(rows), 3, self.heads, self.width)
        context = attend_each(qkv, layout, scaling=self.scaling).flatten(1)
        return _joined([self._after(*parts) for parts in zip(context.split(step), rows.split(step), strict=True)])

    def _after(self, context: Tensor, rows: Tensor) -> Tensor:
        """What follows attention, of any rows of a batch."""
        rows = self.norms[0](self.out.plus(context, rows))
        return self.norms[1](self.down.plus(self.up(rows, "gelu"), rows))  # type: ignore[no-any-return]


class Frozen:
    """A model's layers as they are now, for inference on the CPU: (T, D) embeddings to (T, D) hidden states."""

    def __init__(self, model: Any, precision: str) -> None:
        # what lies between int8's products is in bf16 where that is no emulation
        half = precision == "bf16" or (precision == "int8" and units.has_bf16())
        dtype = torch.bfloat16 if half else torch.float32
        self.precision = precision
        self._updates = _Updates.count
        self._weights = [(weakref.ref(weight), _mark(weight)) for weight in model.parameters()]
        product = _Int8 if precision == "int8" else _Fused
        make = functools.partial(product, dtype=dtype)
        self.dtype = dtype
        with torch.no_grad():
            self.layers = [_Layer(layer, make, dtype) for layer in model.encoder.layer]

    def holds(self, model: nn.Module, precision: str) -> bool:
        """Whether these are still the layers of this model: the same tensors, unchanged since.

        Not seen are writes through `.data`, and any to weights made under torch.inference_mode(): nothing counts those.
        """
        now = list(model.parameters())
        same = len(now) == len(self._weights) and (precision, _Updates.count) == (self.precision, self._updates)
        return same and all(
            ref() is weight and mark == _mark(weight) for weight, (ref, mark) in zip(now, self._weights, strict=True)
        )

    def __call__(self, embedded: Tensor, layout: Layout) -> Tensor:
        """All layers, one after the other."""
        rows = embedded.to(self.dtype)
        for layer in self.layers:
            rows = layer(rows, layout)
        return rows


def can_freeze(model: nn.Module, precision: str) -> bool:
    """Whether every layer is one that is computed here, on this machine, in this precision."""
    layers = getattr(getattr(model, "encoder", None), "layer", [])
    known = bool(layers) and all(type(layer) in (PackedXlmRobertaLayer, PackedBertLayer) for layer in layers)
    exact = known and all(_is_erf(layer.intermediate.intermediate_act_fn) for layer in layers)
    return exact and not units.lacking(precision)


def usable(precision: str, device: torch.device) -> str:
    """The precision, or fp32 in place of a bf16 for which this processor has no units: it would be the slower one."""
    return "fp32" if precision == "bf16" and device.type == "cpu" and not units.has_bf16() else precision


def refuse_int8(precision: str, device: torch.device) -> None:
    """Complain about an int8 that this device does not compute."""
    why = units.lacking("int8") if device.type == "cpu" else f"{device} is none"
    if precision == "int8" and why:
        raise UsageError(f"precision int8 needs a CPU with int8 units, but {why}; take bf16 or fp32")


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mark(weight: Tensor) -> tuple[int, int]:
    """Changes with every change in place that torch counts."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _of(dense: nn.Linear) -> tuple[Tensor, Tensor]:
    return dense.weight, dense.bias


def _norm(norm: nn.LayerNorm, dtype: torch.dtype) -> Any:
    return functools.partial(
        F.layer_norm,
        normalized_shape=norm.normalized_shape,
        weight=norm.weight.detach().to(dtype),
        bias=norm.bias.detach().to(dtype),
        eps=norm.eps,
    )


def _is_erf(activation: Any) -> bool:
    """Whether it is the exact GELU: what oneDNN fuses is that, and BERT's relatives know half a dozen."""
    probe = torch.linspace(-3, 3, 25)
    return bool(torch.equal(activation(probe), F.gelu(probe)))
