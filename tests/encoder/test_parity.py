"""Ways of training that must not change what is computed, and the larger architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, XLMRobertaXLConfig, XLMRobertaXLModel

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import Contract, Encoder, ModelSettings, load, positions, save
from mcontriever.errors import SettingsError
from mcontriever.pairs import Packed


def padded_mean(model: nn.Module, packed: Packed, pad: int) -> Tensor:
    ids = nn.utils.rnn.pad_sequence(packed.split(), batch_first=True, padding_value=pad)
    mask = torch.arange(ids.shape[1]) < packed.lengths[:, None]
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return (hidden * mask[..., None]).sum(1) / packed.lengths[:, None]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.detach().abs().max())), rtol=0)


def same_gradients(ours: nn.Module, theirs: nn.Module, atol: float = 1e-5) -> None:
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        scale = max(1.0, float(expected[name].grad.abs().max()))  # type: ignore[union-attr]
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=atol * scale, rtol=1e-4, msg=name)


@pytest.fixture
def large(tokenizer: Tokenizer, spread: Callable[[Encoder], Encoder]) -> Encoder:
    config = XLMRobertaXLConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return spread(Encoder(config, Contract.of(config, tokenizer), tokenizer)).eval()


def test_xlm_r_xl_gives_what_the_padded_model_gives(large: Encoder, packed: Packed) -> None:
    config = copy.deepcopy(large.config)
    config._attn_implementation = "eager"
    other = XLMRobertaXLModel(config, add_pooling_layer=False).eval()
    other.load_state_dict(large.model.state_dict())
    expected = padded_mean(other, packed, large.tokenizer.pad)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    ours = large(packed)
    close(ours, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for vectors in (ours, expected):
        (vectors * weights).sum().backward()
    same_gradients(large.model, other)


def test_xlm_r_xl_is_saved_loaded_and_known_to_transformers(large: Encoder, packed: Packed, tmp_path: Path) -> None:
    assert positions(large.config) == 64
    again = load(save(large, tmp_path / "large"))
    assert again.contract.architecture == "xlm-roberta-xl"
    assert torch.equal(again(packed), large(packed))
    theirs = AutoModel.from_pretrained(tmp_path / "large", add_pooling_layer=False).eval()
    expected = padded_mean(theirs, packed, large.tokenizer.pad)
    close(again(packed), expected)


def test_transformers_opens_our_layers_as_its_own(encoder: Encoder, packed: Packed, tmp_path: Path) -> None:
    theirs = AutoModel.from_pretrained(save(encoder, tmp_path / "it"), add_pooling_layer=False).eval()
    assert type(theirs).__name__ == "XLMRobertaModel"
    expected = padded_mean(theirs, packed, encoder.tokenizer.pad)
    torch.testing.assert_close(encoder(packed), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["encoder", "large"])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.2])
def test_checkpointed_activations_change_no_gradient(
    kind: str, attention_dropout: float, packed: Packed, request: pytest.FixtureRequest
) -> None:
    plain: Encoder = request.getfixturevalue(kind)
    plain.attention_dropout = attention_dropout
    lean = copy.deepcopy(plain)
    lean.checkpoint_activations(True)
    kept = []
    for model in (plain, lean):
        sizes: list[int] = []
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            loss = model.train()(packed).square().mean()
        loss.backward()
        kept.append(sum(sizes))
    for (name, ours), (_, theirs) in zip(lean.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name  # type: ignore[arg-type]
    assert kept[1] < kept[0] / 2
    lean.checkpoint_activations(False)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in lean.modules())


def test_attention_dropout_is_off_unless_asked_for_and_acts_in_training_alone(
    encoder: Encoder, packed: Packed, tokenizer: Tokenizer, shape: ModelSettings
) -> None:
    assert encoder.attention_dropout == 0.0
    exact = encoder(packed)
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.allclose(encoder.train()(packed), exact, atol=1e-5)
    encoder.attention_dropout = 0.3
    assert not torch.allclose(encoder(packed), exact, atol=1e-3)
    torch.testing.assert_close(encoder.eval()(packed), exact, atol=1e-5, rtol=0)
    assert copy.deepcopy(encoder).attention_dropout == 0.3
    asked = ModelSettings(layers=2, hidden=32, heads=4, intermediate=64, max_positions=66, attention_dropout=0.1)
    assert Encoder.random(asked, tokenizer).attention_dropout == 0.1
    with pytest.raises(SettingsError, match=r"attention_dropout must lie in \[0, 1\)"):
        ModelSettings(attention_dropout=1.0)


def test_a_loaded_models_own_attention_dropout_is_not_taken(large: Encoder, tmp_path: Path) -> None:
    assert large.config.attention_probs_dropout_prob == 0.1
    assert large.attention_dropout == 0.0
    assert load(save(large, tmp_path / "large")).attention_dropout == 0.0


def test_fp16_computes_in_half_precision_and_gives_full_precision_vectors(encoder: Encoder, packed: Packed) -> None:
    exact = encoder(packed)
    encoder.precision = "fp16"
    rough = encoder(packed)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05
    rough.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_a_copy_shares_the_tokenizer_and_nothing_else(encoder: Encoder, packed: Packed) -> None:
    copied = copy.deepcopy(encoder)
    assert copied.tokenizer is encoder.tokenizer
    assert torch.equal(copied(packed), encoder(packed))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not torch.allclose(copied(packed), encoder(packed))
    assert not {id(module) for module in copied.modules()} & {id(module) for module in encoder.modules()}
