from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from mcontriever.encoder import Encoder, agreement, attention, inference, layers, load, units
from mcontriever.encoder.attention import Layout
from mcontriever.encoder.inference import Frozen, can_freeze
from mcontriever.errors import UsageError
from mcontriever.pairs import Packed, pack

needs_bf16 = pytest.mark.skipif(not units.has_bf16(), reason="this processor has no bf16 units")
needs_int8 = pytest.mark.skipif(not units.has_int8(), reason="this processor has no int8 units")
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
    monkeypatch.setattr(units, "has_bf16", lambda: False)
    assert not can_freeze(make_encoder().model, "bf16")


def test_texts_are_encoded_by_frozen_layers_until_a_weight_changes(
    make_encoder: Callable[[], Encoder], texts: list[str]
) -> None:
    encoder = make_encoder()
    before = encoder.encode_passages(texts)
    kept = encoder._frozen
    assert kept is not None
    np.testing.assert_array_equal(encoder.encode_passages(texts), before)
    assert encoder._frozen is kept  # a search asks one query at a time: nothing is made ready twice
    with torch.no_grad():
        encoder.model.encoder.layer[0].output.dense.weight.mul_(2)
    changed = encoder.encode_passages(texts)
    assert np.abs(changed - before).max() > 1e-3
    np.testing.assert_allclose(changed, plainly(encoder, texts), atol=1e-5)


def test_a_tensor_put_in_anothers_place_shows(make_encoder: Callable[[], Encoder], texts: list[str]) -> None:
    """As an evaluation in training does: other tensors every time, at the same address perhaps, never changed."""
    encoder = make_encoder()
    encoder.encode_passages(texts)
    dense = encoder.model.encoder.layer[0].output.dense
    dense.weight = torch.nn.Parameter(dense.weight.detach() * 2)
    np.testing.assert_allclose(encoder.encode_passages(texts), plainly(encoder, texts), atol=1e-5)


def test_training_keeps_nothing_frozen(make_encoder: Callable[[], Encoder], texts: list[str], packed: Packed) -> None:
    encoder = make_encoder()
    encoder.encode_passages(texts)
    assert encoder.train()._frozen is None
    encoder.encode_passages(texts)
    assert encoder.training
    assert encoder._frozen is None
    encoder(packed).sum().backward()
    assert all(layer.output.dense.weight.grad is not None for layer in encoder.model.encoder.layer)


def test_a_copy_freezes_for_itself(make_encoder: Callable[[], Encoder], texts: list[str]) -> None:
    encoder = make_encoder()
    expected = encoder.encode_passages(texts)
    twin = copy.deepcopy(encoder)
    assert twin._frozen is None
    assert twin.tokenizer is encoder.tokenizer
    np.testing.assert_array_equal(twin.encode_passages(texts), expected)


@pytest.mark.parametrize(
    ("precision", "floor"),
    [pytest.param("bf16", 0.999, marks=needs_bf16), pytest.param("int8", 0.99, marks=needs_int8)],
)
def test_texts_in_fewer_bits(
    make_encoder: Callable[[], Encoder], texts: list[str], precision: str, floor: float
) -> None:
    encoder = make_encoder()
    exact = torch.from_numpy(encoder.encode_passages(texts))
    encoder.precision = precision
    assert floor < worst_cosine(torch.from_numpy(encoder.encode_passages(texts)), exact) < 1 - 1e-7


def test_int8_without_units_is_one_line(
    make_encoder: Callable[[], Encoder], texts: list[str], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "has_int8", lambda: False)
    encoder = make_encoder()
    encoder.precision = "int8"
    with pytest.raises(UsageError, match="int8 needs a CPU with int8 units, but this processor has no"):
        encoder.encode_queries(texts)
    with pytest.raises(UsageError, match="int8 needs a CPU with int8 units"):
        load(saved, device="cpu", precision="int8")
    with pytest.raises(UsageError, match="int8 needs a CPU with int8 units, but cuda is none"):
        inference.refuse_int8("int8", torch.device("cuda"))


def test_int8_is_for_texts_alone(make_encoder: Callable[[], Encoder], packed: Packed) -> None:
    encoder = make_encoder()
    encoder.precision = "int8"
    with pytest.raises(UsageError, match="precision int8 is for encode_queries"):
        encoder(packed)


@needs_int8
@torch.no_grad()
def test_int8_without_bf16_has_fp32_between(
    model: torch.nn.Module, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "has_bf16", lambda: False)
    frozen, rows = Frozen(model, "int8"), embedded()
    result = frozen(rows, layout)
    assert result.dtype == torch.float32
    assert 0.995 < worst_cosine(result, plain(model, rows, layout)) < 1 - 1e-7


@needs_int8
def test_what_int8_costs_is_told_of_int8(make_encoder: Callable[[], Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    encoder.precision = "int8"
    said = agreement.told(encoder)
    assert said.startswith("int8: the cosine of a text's vector to its own in fp32 is ")
    assert float(said.split(" is ")[1].split()[0]) > 0.98
    assert encoder.precision == "int8"

    def fails(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(agreement, "compare", fails)
    with pytest.raises(RuntimeError):
        agreement.told(encoder)
    assert encoder.precision == "int8"


def test_weights_made_in_inference_mode_are_frozen_too(make_encoder: Callable[[], Encoder], texts: list[str]) -> None:
    expected = make_encoder().encode_passages(texts)
    with torch.inference_mode():
        encoder = make_encoder()
        weights = {name: weight.clone() for name, weight in encoder.state_dict().items()}
        encoder.load_state_dict(weights, assign=True)
        assert next(encoder.parameters()).is_inference()
    np.testing.assert_array_equal(encoder.encode_passages(texts), expected)
    kept = encoder._frozen
    np.testing.assert_array_equal(encoder.encode_passages(texts), expected)
    assert encoder._frozen is kept
    assert kept is not None
    encoder.release()
    assert encoder._frozen is None


def test_two_threads_encode_at_once(make_encoder: Callable[[], Encoder], texts: list[str]) -> None:
    """In training mode, so that one that puts it back too early would give the other dropout."""
    encoder = make_encoder()
    expected = encoder.encode_passages(texts)
    encoder.train()
    begin, found = threading.Barrier(2), []

    def work() -> None:
        begin.wait()
        found.extend(encoder.encode_passages(texts, batch_tokens=1) for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert encoder.training


def test_a_copy_has_a_lock_of_its_own(make_encoder: Callable[[], Encoder]) -> None:
    encoder = make_encoder()  # a pickle made here and now: how multiprocessing hands an encoder on
    assert pickle.loads(pickle.dumps(encoder._turn)).lock is not encoder._turn.lock
    assert copy.deepcopy(encoder)._turn is not encoder._turn


def plainly(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """By `forward`, as in training."""
    tokenizer, limit = encoder.tokenizer, encoder.contract.passage_max_length
    prepared = [encoder.contract.passage_text(text) for text in texts]
    with torch.no_grad():
        return encoder(pack(tokenizer.encode(prepared), tokenizer.bos, tokenizer.eos, limit)).numpy()


def test_an_encoder_that_was_used_can_be_copied_and_pickled(
    make_encoder: Callable[[], Encoder], texts: list[str]
) -> None:
    encoder = make_encoder()
    expected = encoder.encode_queries(texts)
    for again in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        np.testing.assert_array_equal(again.encode_queries(texts), expected)


def test_weights_that_a_fused_optimizer_changed_are_noticed(
    make_encoder: Callable[[], Encoder], texts: list[str]
) -> None:
    """Such a step leaves torch's own count of changes as it was."""
    encoder, packed = make_encoder(), Packed.of([np.array([0, 5, 6, 2]), np.array([0, 7, 2])])
    before = encoder.encode_queries(texts)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01, fused=True)
    encoder(packed).square().sum().backward()
    optimizer.step()
    after = encoder.encode_queries(texts)
    assert np.abs(after - before).max() > 0.01
    encoder.release()
    np.testing.assert_array_equal(after, encoder.encode_queries(texts))
