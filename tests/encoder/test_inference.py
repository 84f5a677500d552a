from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from mcontriever.encoder import Encoder, attention, inference, layers
from mcontriever.encoder.attention import Layout
from mcontriever.encoder.inference import Frozen, can_freeze, state_of
from mcontriever.pairs import Packed

needs_bf16 = pytest.mark.skipif(not inference.has_bf16(), reason="this processor has no bf16 units")
needs_int8 = pytest.mark.skipif(not inference.has_int8(), reason="this processor has no int8 units")
LENGTHS = (1, 33, 7, 7, 64, 18)


@pytest.fixture
def layout() -> Layout:
    return Layout.of(Packed.of([torch.zeros(length, dtype=torch.int64).numpy() for length in LENGTHS]))


@pytest.fixture(params=["xlm-roberta", "bert"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    config, kind = {"xlm-roberta": (XLMRobertaConfig, XLMRobertaModel), "bert": (BertConfig, BertModel)}[request.param]
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    made = kind(config(vocab_size=50, **shape), add_pooling_layer=False).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0 if parameter.dim() > 1 else 0.5, 0.2)
    layers.replace(made)
    return made


def embedded() -> Tensor:
    return F.layer_norm(torch.randn(sum(LENGTHS), 64, generator=torch.Generator().manual_seed(1)), (64,))


def plain(model: torch.nn.Module, rows: Tensor, layout: Layout) -> Tensor:
    hidden = rows[None]
    for layer in model.encoder.layer:
        hidden = layer(hidden, layout=layout)
    return hidden[0]


def worst_cosine(ours: Tensor, expected: Tensor) -> float:
    return float(F.cosine_similarity(ours.float(), expected, dim=-1).min())


@torch.no_grad()
def test_fp32_is_the_layers_own(model: torch.nn.Module, layout: Layout) -> None:
    rows = embedded()
    torch.testing.assert_close(Frozen(model, "fp32")(rows, layout), plain(model, rows, layout), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("precision", "floor"),
    [pytest.param("bf16", 0.9995, marks=needs_bf16), pytest.param("int8", 0.995, marks=needs_int8)],
)
@torch.no_grad()
def test_fewer_bits_are_near(model: torch.nn.Module, layout: Layout, precision: str, floor: float) -> None:
    rows = embedded()
    near = worst_cosine(Frozen(model, precision)(rows, layout), plain(model, rows, layout))
    assert floor < near < 1 - 1e-7  # equal would mean that another precision was computed


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_int8)])
@torch.no_grad()
def test_a_text_does_not_feel_its_neighbours(model: torch.nn.Module, precision: str) -> None:
    """Activations are rounded a token at a time: with one scale a batch a loud neighbour would change a text."""
    frozen, rows = Frozen(model, precision), embedded()
    alone = Layout(torch.tensor([0, 33], dtype=torch.int32), (0, 33), 33)
    loud = torch.cat([rows[1:34], 50 * rows[34:98]])
    both = Layout(torch.tensor([0, 33, 97], dtype=torch.int32), (0, 33, 97), 64)
    torch.testing.assert_close(frozen(rows[1:34], alone), frozen(loud, both)[:33], atol=2e-6, rtol=2e-6)


@needs_int8
@torch.no_grad()
def test_int8_is_rounding_and_nothing_else() -> None:
    """Against the product of the rounded numbers, worked out in float64."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, rows = (torch.randn(*shape, generator=generator) for shape in ((24, 32), (24,), (5, 32)))
    rows[0] = 0  # a token without a scale
    product = inference._Int8(weight, bias, torch.float32)
    steps = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    columns = weight.abs().amax(1, keepdim=True) / 127
    rounded = (rows / steps).round().double() @ (weight / columns).round().double().T
    expected = rounded * steps.double() * columns.double().T + bias
    torch.testing.assert_close(product(rows), expected.float(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(product(rows, "gelu"), F.gelu(expected.float()), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(product.plus(rows, bias.expand(5, 24)), (expected + bias).float(), atol=1e-4, rtol=1e-5)


@needs_bf16
@torch.no_grad()
def test_attention_without_gradients_is_attention() -> None:
    qkv = torch.randn(30, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    layout = Layout(torch.tensor([0, 10, 30], dtype=torch.int32), (0, 10, 30), 20)
    expected = attention.attend(qkv, layout)
    torch.testing.assert_close(attention.attend_each(qkv, layout), expected)
    half = attention.attend_each(qkv.bfloat16(), layout)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.03, rtol=0.03)


def test_what_cannot_be_frozen_is_known(make_encoder: Callable[[], Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    assert can_freeze(encoder.model, "fp32")
    assert not can_freeze(encoder.model, "fp16")
    encoder.model.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.GELU("tanh")
    assert not can_freeze(encoder.model, "fp32")  # another activation than the one that is fused
    monkeypatch.setattr(inference, "has_bf16", lambda: False)
    assert not can_freeze(make_encoder().model, "bf16")


def test_a_changed_weight_shows(make_encoder: Callable[[], Encoder]) -> None:
    encoder = make_encoder()
    before = state_of(encoder.model)
    assert state_of(encoder.model) == before
    with torch.no_grad():
        next(encoder.model.parameters()).mul_(2)
    assert state_of(encoder.model) != before
