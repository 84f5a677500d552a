from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, XLMRobertaConfig

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


@pytest.fixture
def tiny(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Makes a folder as transformers would: random weights of a kind, a tokenizer of a kind, safetensors or `.bin`."""

    def make(
        name: str = "tiny",
        kind: str = "xlm-roberta",
        *,
        words: str = "xlm-roberta",
        room: int = 64,
        pickled: bool = False,
        masked: bool = False,
        **config: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        if words == "bert":
            pieces = sorted({piece for text in TEXTS for piece in text.lower() if not piece.isspace()})
            vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *(f"##{piece}" for piece in pieces)]
            (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
            (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
            size, pad = len(vocabulary), 0
        else:
            tokenizer.save(folder)
            size, pad = tokenizer.vocab_size, tokenizer.pad
        made = (BertConfig if kind == "bert" else XLMRobertaConfig)(
            vocab_size=size,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=room if kind == "bert" else room + 2,
            pad_token_id=0 if kind == "bert" else pad,
            layer_norm_eps=1e-5,
            **config,
        )
        torch.manual_seed(0)
        model = (AutoModelForMaskedLM if masked else AutoModel).from_config(made)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, 0.3)
                    parameter[: size if parameter.shape[0] == size else 0].mul_(3)
        model.save_pretrained(folder)
        if pickled:
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | config))
        return folder

    return make


@pytest.fixture
def pooled() -> Callable[..., NDArray[np.float32]]:
    """What transformers' own model and tokenizer give, padded, with the pooling written out."""

    def compute(folder: Path, texts: list[str], pooling: str, max_length: int) -> NDArray[np.float32]:
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        batch = AutoTokenizer.from_pretrained(folder)(
            texts,
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        vectors = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        return vectors.numpy()

    return compute
