"""Whatever lies in a batch beside it, and however it is packed, a text has one vector, and it is transformers' own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mcontriever.encoder import Encoder, load, pooling, save
from mcontriever.pairs import Packed


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_vectors_are_transformers_own_in_any_batch_and_order(
    kind: str,
    mode: str,
    tiny: Callable[..., Path],
    pooled: Callable[..., NDArray[np.float32]],
    texts: list[str],
) -> None:
    folder = tiny(kind=kind, words=kind)
    encoder = load(folder, device="cpu", pooling=mode, similarity="dot")
    many = [*texts, "a", " ".join(texts * 4), "Who?"]
    expected = pooled(folder, many, mode, 64)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    for batch_tokens in (1, 40, 4096):  # alone, a few together, all at once
        np.testing.assert_allclose(encoder.encode_queries(many, batch_tokens=batch_tokens), expected, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(many))
    shuffled = encoder.encode_passages([many[row] for row in order], batch_tokens=100)
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-5)
    for row, text in enumerate(many):
        neighbours = [many[(row + 3) % len(many)], text, "b"]
        np.testing.assert_allclose(encoder.encode_queries(neighbours)[1], expected[row], atol=1e-5)
    # and theirs, padded or not, agree with each other as well as ours do with them
    alone = np.concatenate([pooled(folder, [text], mode, 64) for text in many[:3]])
    np.testing.assert_allclose(alone, expected[:3], atol=1e-5)


def test_pooling_is_what_it_says() -> None:
    packed = Packed.of([torch.arange(length).numpy() for length in (1, 3, 2)])
    hidden = torch.randn(6, 4)
    spans = [hidden[:1], hidden[1:4], hidden[4:]]
    torch.testing.assert_close(pooling.pool(hidden, packed, "mean"), torch.stack([span.mean(0) for span in spans]))
    assert torch.equal(pooling.pool(hidden, packed, "cls"), torch.stack([span[0] for span in spans]))
    assert pooling.pool(hidden.bfloat16(), packed, "cls").dtype == torch.float32
    layer = nn.Linear(4, 3)
    vectors = torch.randn(2, 4)
    plain = vectors @ layer.weight.T + layer.bias
    torch.testing.assert_close(pooling.project(vectors, layer, "identity"), plain)
    torch.testing.assert_close(pooling.project(vectors, layer, "tanh"), plain.tanh())


def test_a_projection_is_part_of_the_encoder_and_of_its_checkpoint(
    encoder: Encoder, packed: Packed, tmp_path: Path
) -> None:
    contract = dataclasses.replace(encoder.contract, projection="tanh", dimension=5)
    wider = Encoder(encoder.config, contract, encoder.tokenizer).eval()
    wider.model.load_state_dict(encoder.model.state_dict())
    assert isinstance(wider.projection, nn.Linear)
    expected = torch.tanh(wider.projection(encoder(packed)))
    torch.testing.assert_close(wider(packed), expected, atol=1e-6, rtol=0)
    assert {name for name in wider.state_dict() if not name.startswith("model.")} == {
        "projection.weight",
        "projection.bias",
    }
    again = load(save(wider, tmp_path / "wider"), device="cpu")
    assert again.contract == contract
    assert torch.equal(again(packed), wider(packed))
    wider(packed).sum().backward()
    assert wider.projection.weight.grad is not None
    assert encoder.projection is None
