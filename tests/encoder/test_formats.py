"""What is written for other software is read by it to the same vectors, and by us to the same contract."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mcontriever import artifact
from mcontriever.encoder import CheckpointError, Encoder, agreement, formats, load, onnx_graph
from mcontriever.encoder.card import Card
from mcontriever.encoder.formats import write
from mcontriever.errors import MissingExtra

COSINE = {"normalise": True, "similarity": "cosine"}
PREFIXES = {"query_prefix": "query: ", "passage_prefix": "passage: ", "title_joiner": " | "}
LENGTHS = {"query_max_length": 9, "passage_max_length": 40}
PASSAGES = [("", "Coffee is a drink."), ("Kahawa", "Kahawa ni kinywaji " * 9)]


@pytest.fixture
def used(make_encoder: Callable[[], Encoder]) -> Callable[..., Encoder]:
    """The encoder by other rules of use."""

    def change(**rules: object) -> Encoder:
        encoder = make_encoder()
        encoder.contract = dataclasses.replace(encoder.contract, **rules)  # type: ignore[arg-type]
        return encoder

    return change


@pytest.fixture
def projected(used: Callable[..., Encoder]) -> Encoder:
    encoder = used(pooling="cls", projection="tanh", dimension=24, **COSINE)
    torch.manual_seed(1)
    encoder.projection = nn.Linear(32, 24)
    return encoder


def exported(encoder: Encoder, out: Path, format: str = "sentence-transformers", **how: bool) -> Path:
    write(encoder, out, format=format, about=Card(name="out", format=format), beside={}, meta={}, **how)
    return out


def same(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.linalg.norm(want, axis=1).max())


RULES = [{}, COSINE, PREFIXES | LENGTHS, {"pooling": "cls"} | COSINE | PREFIXES, {"lowercase": True}]


@pytest.mark.parametrize("rules", RULES, ids=["contriever", "cosine", "lengths", "cls", "lowercase"])
def test_sentence_transformers_gives_our_vectors(
    used: Callable[..., Encoder], tmp_path: Path, texts: list[str], rules: dict[str, object]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    encoder = used(**rules)
    folder = exported(encoder, tmp_path / "out")
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    assert theirs.similarity_fn_name == encoder.contract.similarity
    same(theirs.encode_query(texts), encoder.encode_queries(texts))
    joined = [f"{title}{encoder.contract.title_joiner}{text}" if title else text for title, text in PASSAGES]
    same(theirs.encode_document(joined), encoder.encode_passages(PASSAGES))
    again = load(folder, device="cpu")
    assert again.contract == encoder.contract
    np.testing.assert_array_equal(again.encode_queries(texts), encoder.encode_queries(texts))


def test_a_projection_goes_along(projected: Encoder, tmp_path: Path, texts: list[str]) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = exported(projected, tmp_path / "out")
    same(library.SentenceTransformer(str(folder), device="cpu").encode_query(texts), projected.encode_queries(texts))
    again = load(folder, device="cpu")
    assert again.contract == projected.contract
    np.testing.assert_array_equal(again.encode_queries(texts), projected.encode_queries(texts))
    with pytest.raises(CheckpointError, match="no place for this encoder's projection; give --format"):
        exported(projected, tmp_path / "plain", "huggingface")


@pytest.mark.parametrize("rules", [{}, PREFIXES | LENGTHS | COSINE])
def test_the_folder_says_by_its_own_files_what_the_contract_says(
    used: Callable[..., Encoder], tmp_path: Path, rules: dict[str, object]
) -> None:
    encoder = used(**rules)
    folder = exported(encoder, tmp_path / "out")
    for name in ("contract.json", "manifest.json"):  # as if sentence-transformers had written it
        (folder / name).unlink()
    # how titles are joined is the one thing its files have no word for
    assert load(folder, device="cpu").contract == dataclasses.replace(encoder.contract, title_joiner=" ")


def test_a_plain_folder_is_a_checkpoint_and_says_how_far_it_was_checked(
    encoder: Encoder, tmp_path: Path, texts: list[str]
) -> None:
    encoder.config.dtype = torch.float16  # where the weights came from; what is written is fp32
    folder = exported(encoder, tmp_path / "out", "huggingface")
    again = load(folder, device="cpu")
    assert again.contract == encoder.contract
    np.testing.assert_array_equal(again.encode_queries(texts), encoder.encode_queries(texts))
    checked = artifact.open_artifact(folder, "checkpoint").meta["checked"]
    assert checked["by"].startswith("transformers ")
    assert checked["difference"] < 1e-6
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_the_card_may_be_edited_and_nothing_else(encoder: Encoder, tmp_path: Path) -> None:
    folder = exported(encoder, tmp_path / "out", "checkpoint")
    (folder / "README.md").write_text("mine\n")
    load(folder, device="cpu")
    with (folder / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(artifact.ArtifactError, match="its manifest says"):
        load(folder, device="cpu")


def test_what_differs_is_not_kept(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = formats.save_weights

    def harm(weights: dict[str, torch.Tensor], folder: Path) -> None:
        changed = {
            name: value * 1.001 if name.endswith("layer.1.output.dense.weight") else value
            for name, value in weights.items()
        }
        real(changed, folder)

    monkeypatch.setattr(formats, "save_weights", harm)
    with pytest.raises(CheckpointError, match=r"not written: transformers .* gives vectors that differ from ours by"):
        exported(encoder, tmp_path / "out", "huggingface")
    assert not list(tmp_path.iterdir())


def test_without_the_libraries_the_extra_is_named(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"needs onnxruntime: pip install 'mcontriever\[onnx\]'"):
        exported(encoder, tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_without_sentence_transformers_transformers_checks(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    folder = exported(encoder, tmp_path / "out")
    assert artifact.open_artifact(folder, "checkpoint").meta["checked"]["by"].startswith("transformers ")


def test_the_comparison_tells_figures_that_can_be_worked_out(encoder: Encoder) -> None:
    found = agreement.compare(encoder, "x", encoder.encode_queries, encoder.encode_passages)
    assert (found.difference, found.texts) == (0, 2 * len(agreement.queries(encoder.contract)))
    np.testing.assert_allclose([found.minimum_cosine, found.mean_cosine], 1)
    flipped = agreement.compare(encoder, "x", lambda texts: -encoder.encode_queries(texts), encoder.encode_passages)
    np.testing.assert_allclose([flipped.minimum_cosine, flipped.mean_cosine], [-1, 0], atol=1e-12)
    vectors = encoder.encode_queries(agreement.queries(encoder.contract)).astype(np.float64)
    largest = (abs(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)).max()
    np.testing.assert_allclose(flipped.difference, 2 * largest, rtol=1e-6)


def test_a_text_of_the_comparison_is_longer_than_any_other_and_is_cut(encoder: Encoder) -> None:
    *short, long = encoder.tokenizer.encode(agreement.queries(encoder.contract))
    assert len(long) > 512 > max(map(len, short))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["contriever", "projected"])
def test_onnx(
    used: Callable[..., Encoder],
    projected: Encoder,
    tmp_path: Path,
    texts: list[str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    encoder = projected if kind == "projected" else used(**PREFIXES)
    if kind == "projected":
        monkeypatch.setattr(onnx_graph, "_SINGLE_FILE", 0)  # weights beside the graph, as a large model has them
    folder = exported(encoder, tmp_path / "out", "onnx")
    found = artifact.open_artifact(folder, formats.ONNX)
    assert ("model.onnx.data" in found.files) == (kind == "projected")
    assert found.meta["checked"]["difference"] < 1e-6
    graph = onnx.load(folder / "model.onnx")
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", found.meta["opset"])]
    for one in graph.graph.input:
        assert [axis.dim_param for axis in one.type.tensor_type.shape.dim] == ["batch", "sequence"]
    # alone, and padded far beyond its length: the same vector
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    row = encoder.tokenizer.encode([encoder.contract.query_text(texts[0])])[0]
    ids = np.array([[encoder.tokenizer.bos, *row, encoder.tokenizer.eos]], dtype=np.int64)
    for padding in (0, 7):
        padded = np.pad(ids, ((0, 0), (0, padding)), constant_values=encoder.tokenizer.pad)
        mask = np.pad(np.ones_like(ids), ((0, 0), (0, padding)))
        same(session.run(None, {"input_ids": padded, "attention_mask": mask})[0], encoder.encode_queries(texts[:1]))
    with pytest.raises(artifact.ArtifactError, match="holds an onnx encoder, expected a checkpoint"):
        load(folder)
    # int8 of the same graph: its loss is told, refused beyond the floor, kept when accepted
    parts = [folder / name for name in found.files if name.startswith("model.onnx")]
    monkeypatch.setattr(onnx_graph, "write", lambda encoder, to: [shutil.copy(part, to) for part in parts])
    monkeypatch.setattr(formats, "FLOOR", 1.0)
    with pytest.raises(CheckpointError, match=r"in int8 .* cosine 0\.\d+ .* below 1\.0; give --accept_loss"):
        exported(encoder, tmp_path / "refused", "onnx-int8")
    assert not (tmp_path / "refused").exists()
    small = artifact.open_artifact(exported(encoder, tmp_path / "int8", "onnx-int8", accept_loss=True), formats.ONNX)
    checked = small.meta["checked"]
    assert 0.9 < checked["minimum_cosine"] <= checked["mean_cosine"] < 1
    graph = onnx.load(small.path / "model.onnx").graph
    assert "MatMulInteger" in {node.op_type for node in graph.node}
    largest = max(graph.initializer, key=lambda weight: np.prod(weight.dims))  # the embeddings
    assert list(largest.dims) == [105, 32]
    assert largest.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
