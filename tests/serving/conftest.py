"""An index of a few passages in four languages, and where the tests here find what they share."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
import torch

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import Encoder, ModelSettings, save
from mcontriever.retrieval import EmbedSettings, IndexSettings, Searcher, build_index, embed

sys.path.append(str(pathlib.Path(__file__).parent))

ROWS = {
    "en": ["Coffee is a drink made from roasted beans.", "Penicillin was found by Fleming in 1928.", "Rain falls."],
    "sw": ["Kahawa ni kinywaji kinachotengenezwa kwa mbegu zilizokaangwa."],
    "ar": ["القهوة مشروب يصنع من حبوب محمصة"],
    "ja": ["コーヒーは焙煎した豆から作る飲み物です。"],
}


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    shape = ModelSettings(layers=1, hidden=16, heads=2, intermediate=32, max_positions=66)
    encoder = Encoder.random(shape, Tokenizer.train([text for texts in ROWS.values() for text in texts] * 3, 90))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh weights give all texts about the same vector
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3, generator=generator)
    save(encoder, folder / "model")
    (folder / "corpus").mkdir()
    for code, texts in ROWS.items():
        rows = [{"_id": f"{code}{number}", "title": code, "text": text} for number, text in enumerate(texts)]
        (folder / f"corpus/corpus.{code}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    places = {name: str(folder / name) for name in ("corpus", "vectors", "index")}
    embed(EmbedSettings(checkpoint=str(folder / "model"), corpus=places["corpus"], out=places["vectors"]))
    return build_index(IndexSettings(vectors=places["vectors"], out=places["index"], lexical=False))


@pytest.fixture(scope="session")
def searcher(index):
    return Searcher.open(index, device="cpu")
