from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings, save
from mcontriever.pairs import Packed

TEXTS = [
    "Coffee is a drink made from roasted beans.",
    "Kahawa ni kinywaji kinachotengenezwa kwa mbegu zilizokaangwa.",
    "القهوة مشروب يصنع من حبوب محمصة",
    "Кофе это напиток из жареных зёрен.",
    "コーヒーは焙煎した豆から作る飲み物です。",
    "Who discovered penicillin, and when?",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def shape() -> ModelSettings:
    return ModelSettings(layers=2, hidden=32, heads=4, intermediate=64, max_positions=66, dropout=0.1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 105)


@pytest.fixture(scope="session")
def make_encoder(
    tokenizer: Tokenizer, shape: ModelSettings, spread: Callable[[Encoder], Encoder]
) -> Callable[[], Encoder]:
    return lambda: spread(Encoder.random(shape, tokenizer, seed=3)).eval()


@pytest.fixture
def encoder(make_encoder: Callable[[], Encoder]) -> Encoder:
    return make_encoder()


@pytest.fixture
def packed(tokenizer: Tokenizer) -> Packed:
    generator = np.random.default_rng(0)
    lengths = (3, 17, 9, 9, 40, 16, 3, 22, 1, 8)
    return Packed.of([generator.integers(4, tokenizer.vocab_size - 1, length) for length in lengths])


@pytest.fixture(scope="session")
def spread() -> Callable[[Encoder], Encoder]:
    """Weights as small as fresh ones give all tokens about the same vector: an error could not be seen."""

    def change(encoder: Encoder) -> Encoder:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.3, generator=generator)
        return encoder

    return change


@pytest.fixture(scope="session")
def saved(make_encoder: Callable[[], Encoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "saved"
    return save(make_encoder(), path, extra_files={"recipe.toml": "seed = 1\n"}, meta={"steps": 7})


@pytest.fixture
def ours(saved: Path, tmp_path: Path) -> Path:
    """A copy, to be harmed."""
    return Path(shutil.copytree(saved, tmp_path / "ours"))


@pytest.fixture
def foreign(ours: Path, tmp_path: Path) -> Path:
    """A folder in Hugging Face's layout that knows nothing of us."""
    folder = tmp_path / "foreign"
    shutil.copytree(ours, folder)
    for name in ("contract.json", "manifest.json", "recipe.toml"):
        (folder / name).unlink()
    return folder
