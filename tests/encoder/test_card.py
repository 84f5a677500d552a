"""The card: front matter that a parser reads, words that follow the contract, code that runs, nothing made up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mcontriever.artifact import Draft
from mcontriever.encoder import Encoder, card
from mcontriever.encoder.card import Card
from mcontriever.encoder.formats import write

RECIPE = """\
init = "xlm-roberta-base"
output = "runs/secret/place"
steps = 10
[unlabelled]
shards = "somewhere"
window = 256
[unlabelled.weights]
en = 2.0
[labelled]
file = "my/questions.jsonl"
"""


def written(encoder: Encoder, folder: Path, **about: Any) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a card."""
    card.write(Draft(folder), Card(**{"name": "me/model", "format": "checkpoint", **about}), encoder.contract)
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_only_what_is_known_is_said(encoder: Encoder, tmp_path: Path) -> None:
    front, text = written(encoder, tmp_path)
    assert front == {
        "library_name": "mcontriever",
        "pipeline_tag": "feature-extraction",
        "tags": ["mcontriever", "dense-retrieval"],
    }
    assert re.findall("^## (.*)", text, re.M) == ["How it must be used", "With mcontriever"]


def test_what_is_given_is_in_the_front_matter(encoder: Encoder, tmp_path: Path) -> None:
    given = {"languages": ("en", "no"), "license": "apache-2.0", "base_model": "FacebookAI/xlm-roberta-base"}
    front, _ = written(encoder, tmp_path, format="sentence-transformers", **given)
    assert front["language"] == ["en", "no"]  # YAML's own no is false
    assert (front["license"], front["base_model"]) == ("apache-2.0", "FacebookAI/xlm-roberta-base")
    assert (front["library_name"], front["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")


def test_the_recipe_is_told_without_where_files_lay(encoder: Encoder, tmp_path: Path) -> None:
    _, text = written(encoder, tmp_path, recipe=RECIPE)
    told = re.search(r"```toml\n(.*?)```", text, re.S)
    assert told
    assert told[1] == 'init = "xlm-roberta-base"\nsteps = 10\n\n[unlabelled]\nwindow = 256\nweights = {en = 2.0}\n'


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("xlm-roberta-base", "FacebookAI/xlm-roberta-base"),
        ("BAAI/bge-m3@0123", "BAAI/bge-m3"),
        ("runs/pretrain", ""),
        ("", ""),
    ],
)
def test_a_base_model_is_one_that_is_known(name: str, base: str) -> None:
    assert card.known_base(name) == base


def test_the_rules_of_use_in_words(encoder: Encoder) -> None:
    plain = card.in_words(encoder.contract)
    assert "A query is encoded as its text" in plain
    assert "Do not bring them to length one" in plain
    said = dataclasses.replace(
        encoder.contract, query_prefix="query: ", pooling="cls", normalise=True, similarity="cosine", title_joiner="\n"
    )
    words = card.in_words(said)
    assert "`'query: '`, then its text; what is beyond 64 tokens is cut" in words
    assert "its title, `'\\n'` and its text" in words
    assert "that of the first token, brought to length one" in words
    assert "compared by cosine" in words


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)


def runs(folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run every piece of code of the card where the folder lies; each must find the encoder's own score."""
    monkeypatch.chdir(folder.parent)
    query = encoder.encode_queries(["Who discovered penicillin?"])
    passage = encoder.encode_passages([("Penicillin", "Alexander Fleming discovered it in 1928.")])
    for code in snippets(folder):
        names: dict[str, Any] = {}
        exec(compile(code, "card", "exec"), names)
        np.testing.assert_allclose(np.asarray(names["scores"]), query @ passage.T, rtol=2e-5)
    return len(snippets(folder))


@pytest.fixture
def prefixed(make_encoder: Callable[[], Encoder]) -> Encoder:
    encoder = make_encoder()
    rules = {"query_prefix": 'the "query": ', "passage_prefix": "passage: ", "title_joiner": "\n"}
    encoder.contract = dataclasses.replace(
        encoder.contract, **rules, normalise=True, similarity="cosine", pooling="cls", query_max_length=20
    )
    return encoder


@pytest.mark.parametrize("format", ["checkpoint", "sentence-transformers", "huggingface"])
@pytest.mark.parametrize("kind", ["encoder", "prefixed"])
def test_the_code_runs(
    format: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    encoder = request.getfixturevalue(kind)
    write(encoder, tmp_path / "out", format=format, about=Card(name="out", format=format), beside={}, meta={})
    assert runs(tmp_path / "out", encoder, monkeypatch) == (1 if format == "checkpoint" else 2)


@pytest.mark.slow
def test_the_code_for_onnx_runs(prefixed: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    write(prefixed, tmp_path / "out", format="onnx", about=Card(name="out", format="onnx"), beside={}, meta={})
    assert runs(tmp_path / "out", prefixed, monkeypatch) == 1
