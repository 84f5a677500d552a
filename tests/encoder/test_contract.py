from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mcontriever import artifact
from mcontriever.cli import main
from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import CheckpointError, Contract, Encoder, load, registry, save
from mcontriever.encoder.contract import FILE


def test_what_is_written_is_read_again(encoder: Encoder, tmp_path: Path) -> None:
    contract = dataclasses.replace(encoder.contract, query_prefix="سؤال: ", lowercase=True, passage_max_length=33)
    contract.save(tmp_path)
    assert Contract.read(tmp_path) == contract
    assert "سؤال: " in (tmp_path / FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize": True}, r"unknown key 'normalize'.*; did you mean 'normalise'\?"),
        ({"pooling": "max"}, r"pooling must be mean or cls, got 'max'"),
        ({"pooling": 3}, r"pooling must be str, got 3"),
        ({"normalise": "yes"}, r"normalise must be bool, got 'yes'"),
        ({"dimension": True}, r"dimension must be int, got True"),
        ({"similarity": "cosine"}, r"cosine needs normalise"),
        ({"query_max_length": 2}, r"query_max_length must be 3 or more"),
        ({"golden": [["text"]]}, r"golden must be a list"),
        ({"dimension": None}, r"missing dimension"),
    ],
)
def test_a_wrong_file_is_refused(encoder: Encoder, tmp_path: Path, change: dict[str, object], message: str) -> None:
    encoder.contract.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text()) | change
    (tmp_path / FILE).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(CheckpointError, match=message) as error:
        Contract.read(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=FILE):
        Contract.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "bert"}, r"architecture 'bert'.*'xlm-roberta'"),
        ({"dimension": 64}, r"dimension 64.*32"),
        ({"golden": (("coffee", (1, 2)),)}, r"turns 'coffee' into .*says \[1, 2\]"),
        ({"passage_max_length": 65}, r"allows 65 tokens, the model has 64 positions"),
    ],
)
def test_verify_says_what_differs(encoder: Encoder, change: dict[str, object], message: str) -> None:
    encoder.contract.verify(encoder.tokenizer, encoder.config)
    changed = dataclasses.replace(encoder.contract, **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        changed.verify(encoder.tokenizer, encoder.config)


def test_another_tokenizer_is_refused(encoder: Encoder, texts: list[str]) -> None:
    other = Tokenizer.train(texts, 100)
    with pytest.raises(CheckpointError, match="tokenizer_fingerprint"):
        encoder.contract.verify(other, encoder.config)


def test_texts_are_put_together_by_the_contract(encoder: Encoder) -> None:
    contract = dataclasses.replace(encoder.contract, query_prefix="Q: ", passage_prefix="P: ", title_joiner=" | ")
    assert contract.query_text("Über") == "Q: Über"
    assert contract.passage_text("text", "Title") == "P: Title | text"
    assert contract.passage_text("text") == "P: text"
    assert dataclasses.replace(contract, lowercase=True).passage_text("TEXT", "Title") == "p: title | text"


def test_in_words(encoder: Encoder) -> None:
    changed = dataclasses.replace(encoder.contract, normalise=True, similarity="cosine", query_prefix="query: ")
    words = changed.in_words()
    for fact in ("xlm-roberta, 32 dimensions", "mean of all tokens, brought to length one", "cosine", "'query: ' + "):
        assert fact in words
    assert "cosine" not in encoder.contract.in_words()


def test_every_row_of_the_registry_is_a_valid_contract(encoder: Encoder) -> None:
    for name, known in registry.KNOWN.items():
        contract = dataclasses.replace(encoder.contract, **known.rules)
        assert (contract.similarity == "cosine") == contract.normalise, name
    contriever = registry.KNOWN["facebook/mcontriever-msmarco"].rules
    assert contriever == {"pooling": "mean", "normalise": False, "similarity": "dot"}
    assert registry.KNOWN["intfloat/multilingual-e5-base"].rules["query_prefix"] == "query: "


def test_old_names_of_the_starts_are_found() -> None:
    base = registry.find("xlm-roberta-base")
    assert base is not None
    assert base.start
    assert registry.find("bert-base-multilingual-cased") is not None
    assert registry.find("bge-m3") is None
    assert registry.find("runs/model") is None


def test_inspecting_complains_of_what_loading_would(encoder: Encoder, tmp_path: Path) -> None:
    changed = encoder.contract.golden[0][0], (5, 5)
    other = dataclasses.replace(encoder.contract, golden=(changed, *encoder.contract.golden[1:]))
    folder = save(encoder, tmp_path / "ours")
    with artifact.writing(tmp_path / "changed", "checkpoint") as draft:
        for file in folder.iterdir():
            if file.name not in ("manifest.json", "contract.json"):
                shutil.copy(file, draft.folder)
        other.save(draft.folder)
    for complain in (load, lambda path: main(["inspect", str(path)])):
        with pytest.raises(CheckpointError, match=r"the tokenizer turns .* the contract says \[5, 5\]"):
            complain(tmp_path / "changed")
