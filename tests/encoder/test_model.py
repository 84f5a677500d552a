from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, XLMRobertaModel

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import CheckpointError, Contract, Encoder, ModelSettings
from mcontriever.errors import DataError, SettingsError
from mcontriever.pairs import Packed, pack


def padded_mean(model: nn.Module, packed: Packed, pad: int) -> Tensor:
    """The vectors as transformers computes them, padded and masked."""
    rows = packed.split()
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = torch.arange(ids.shape[1]) < packed.lengths[:, None]
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / packed.lengths[:, None]


def twin(encoder: Encoder, kind: type = XLMRobertaModel) -> nn.Module:
    config = copy.deepcopy(encoder.config)
    config._attn_implementation = "eager"
    model: nn.Module = kind(config, add_pooling_layer=False)
    model.load_state_dict(encoder.model.state_dict())
    return model.eval()


@pytest.fixture
def bert(tmp_path: Path, spread: Callable[[Encoder], Encoder]) -> Encoder:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "coffee", "tea", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = Tokenizer.load(tmp_path)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    return spread(Encoder(config, Contract.of(config, tokenizer), tokenizer)).eval()


def test_vectors_are_those_of_the_padded_model(encoder: Encoder, packed: Packed) -> None:
    expected = padded_mean(twin(encoder), packed, encoder.tokenizer.pad)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(encoder(packed), expected, atol=1e-5, rtol=0)


def test_bert_counts_positions_from_zero(bert: Encoder) -> None:
    generator = np.random.default_rng(0)
    packed = Packed.of([generator.integers(5, 34, length) for length in (2, 9, 48, 9)])
    expected = padded_mean(twin(bert, BertModel), packed, bert.tokenizer.pad)
    torch.testing.assert_close(bert(packed), expected, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_padded_model(encoder: Encoder, packed: Packed) -> None:
    weights = torch.randn(len(packed), 32, generator=torch.Generator().manual_seed(1))
    other = twin(encoder)
    (padded_mean(other, packed, encoder.tokenizer.pad) * weights).sum().backward()
    (encoder(packed) * weights).sum().backward()
    theirs = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, parameter in encoder.model.named_parameters():
        expected = theirs[name]
        assert parameter.grad is not None
        assert expected is not None
        scale = float(expected.abs().max())
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5 * max(1.0, scale), rtol=1e-4, msg=name)


def test_neighbours_and_order_do_not_matter(encoder: Encoder, packed: Packed) -> None:
    together = encoder(packed)
    rows = [row.numpy() for row in packed.split()]
    alone = torch.cat([encoder(Packed.of([row])) for row in rows])
    turned = encoder(Packed.of(rows[::-1])).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_and_normalisation(
    tokenizer: Tokenizer, shape: ModelSettings, packed: Packed, encoder: Encoder, pooling: str
) -> None:
    other = Encoder.random(shape, tokenizer, pooling=pooling, normalise=True, similarity="cosine").eval()
    other.load_state_dict(encoder.state_dict())
    hidden = twin(encoder)
    rows = [hidden(input_ids=row[None]).last_hidden_state[0] for row in packed.split()]
    expected = torch.stack([row.mean(0) if pooling == "mean" else row[0] for row in rows])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(other(packed), expected, atol=1e-5, rtol=0)


def test_dropout_acts_in_training_and_only_there(encoder: Encoder, packed: Packed) -> None:
    assert torch.equal(encoder(packed), encoder(packed))
    encoder.train()
    torch.manual_seed(0)
    first = encoder(packed)
    second = encoder(packed)
    torch.manual_seed(0)
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(first, encoder(packed))


def test_autocast_and_bf16_weights_give_fp32_vectors(encoder: Encoder, packed: Packed) -> None:
    exact = encoder(packed)
    twin = copy.deepcopy(encoder)
    twin.precision = "bf16"
    mixed = twin(packed)
    mixed.sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    half = copy.deepcopy(encoder).bfloat16()(packed)
    for vectors in (mixed, half):
        assert vectors.dtype == torch.float32
        assert not torch.equal(vectors, exact)
        assert torch.cosine_similarity(vectors, exact).min() > 0.995


def test_fresh_weights_come_from_the_seed_alone(tokenizer: Tokenizer, shape: ModelSettings) -> None:
    torch.manual_seed(5)
    first = Encoder.random(shape, tokenizer, seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    second, third = (Encoder.random(shape, tokenizer, seed=seed) for seed in (1, 2))
    name = "model.embeddings.word_embeddings.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], third.state_dict()[name])


@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_texts_come_back_in_their_order(encoder: Encoder, texts: list[str], batch_tokens: int) -> None:
    tokenizer = encoder.tokenizer
    expected = encoder(pack(tokenizer.encode(texts), tokenizer.bos, tokenizer.eos, 64)).detach().numpy()
    encoder.train()
    vectors = encoder.encode_queries(texts, batch_tokens=batch_tokens)
    assert encoder.training
    assert encoder.model.training
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert len({row.tobytes() for row in vectors}) == len(texts)


def test_a_forward_pass_keeps_to_the_budget(
    encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda packed: (seen.append(packed.lengths.tolist()), forward(packed))[1])
    encoder.encode_queries(texts * 3, batch_tokens=60)
    assert len(seen) > 3
    assert all(sum(lengths) <= 60 or len(lengths) == 1 for lengths in seen)
    flat = [length for lengths in seen for length in lengths]
    assert flat == sorted(flat, reverse=True)


def test_the_contract_shapes_the_text(tokenizer: Tokenizer, shape: ModelSettings, encoder: Encoder) -> None:
    other = Encoder.random(
        shape,
        tokenizer,
        query_prefix="Who ",
        passage_prefix="Coffee ",
        title_joiner=" from ",
        lowercase=True,
        query_max_length=8,
        passage_max_length=20,
    )
    other.load_state_dict(encoder.state_dict())

    def by_hand(text: str, length: int) -> np.ndarray:
        tokens = tokenizer.encode([text])
        return encoder(pack(tokens, tokenizer.bos, tokenizer.eos, length)).detach().numpy()

    np.testing.assert_allclose(other.encode_queries(["Beans"]), by_hand("who beans", 8), atol=1e-5)
    long = "discovered penicillin, and when?"
    assert len(tokenizer.encode([long])[0]) > 20
    np.testing.assert_allclose(other.encode_queries([long]), by_hand(f"who {long}", 8), atol=1e-5)
    found = other.encode_passages([("Drink", "Roasted"), "Roasted", ("", "Roasted"), long])
    expected = ["coffee drink from roasted", "coffee roasted", "coffee roasted", f"coffee {long}"]
    for row, text in zip(found, expected, strict=True):
        np.testing.assert_allclose(row[None], by_hand(text, 20), atol=1e-5)


def test_no_texts_give_no_vectors_and_tensors_can_be_had(encoder: Encoder) -> None:
    assert encoder.encode_queries([]).shape == (0, 32)
    vectors = encoder.encode_passages(["coffee"], as_numpy=False)
    assert isinstance(vectors, Tensor)
    assert not vectors.requires_grad


def test_bf16_on_request(encoder: Encoder, texts: list[str]) -> None:
    exact = encoder.encode_queries(texts)
    encoder.precision = "bf16"
    rough = encoder.encode_queries(texts)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", ""], r"query 1 is empty"),
        ([" \n"], r"query 0 is empty"),
        (["fine", "fine", None], r"query 2 is None; expected a text"),
        ([7], r"query 0 is 7"),
        ("one text", r"write \[text\]"),
        (["fine", "a \ud83d b"], r"query 1 holds half of a surrogate pair, '\\ud83d' at character 2; mend the text"),
    ],
)
def test_what_is_no_query_is_named(encoder: Encoder, texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoder.encode_queries(texts)


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([("title", "text"), ("", "")], r"passage 1 is empty|passage 1's title is empty"),
        ([("title", None)], r"passage 0 is None"),
        ([(None, "text")], r"passage 0's title is None"),
        ([("a", "b", "c")], r"passage 0 is .*expected a text or a \(title, text\) pair"),
        ([{"text": "a"}], r"passage 0 is"),
        (["\udc00"], r"passage 0 holds half of a surrogate pair"),
        ([("t\ud800", "text")], r"passage 0's title holds half of a surrogate pair"),
    ],
)
def test_what_is_no_passage_is_named(encoder: Encoder, passages: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoder.encode_passages(passages)


def test_settings_out_of_range() -> None:
    with pytest.raises(SettingsError, match=r"model\.heads must divide model\.hidden \(256\) evenly, got 3"):
        ModelSettings(heads=3)
    with pytest.raises(SettingsError, match=r"dropout must lie in \[0, 1\)"):
        ModelSettings(dropout=1.0)


def test_a_contract_longer_than_the_model_is_refused(tokenizer: Tokenizer, shape: ModelSettings) -> None:
    Encoder.random(shape, tokenizer, passage_max_length=64)
    with pytest.raises(CheckpointError, match=r"allows 65 tokens, the model has 64 positions"):
        Encoder.random(shape, tokenizer, passage_max_length=65)
