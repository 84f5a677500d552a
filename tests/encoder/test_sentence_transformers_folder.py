"""Folders that sentence-transformers itself writes, in its present way and in that of its versions before 6."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mcontriever.encoder import CheckpointError, Contract, load, save

theirs = pytest.importorskip("sentence_transformers")
parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")


def write(tiny: Callable[..., Path], pooling: str = "mean", *more: str, **use: Any) -> Any:
    """sentence-transformers' model of a tiny folder, and the folder it writes for it."""
    start = tiny("start", use.pop("kind", "xlm-roberta"))
    modules = [parts.Transformer(str(start)), parts.Pooling(16, pooling)]
    torch.manual_seed(2)
    for kind in more:
        if kind == "Normalize":
            modules.append(parts.Normalize())
        else:
            activation = nn.Tanh() if kind == "tanh" else nn.Identity()
            modules.append(parts.Dense(16, 12, bias=kind != "no bias", activation_function=activation))
    model = theirs.SentenceTransformer(modules=modules, device="cpu", **use)
    model.max_seq_length = 24
    model.save(str(start.parent / "theirs"), create_model_card=False)
    return model, start.parent / "theirs"


def as_before_6(folder: Path) -> Path:
    """The same folder with its settings under the names and in the files of version 5."""
    old = Path(shutil.copytree(folder, folder.parent / "old"))
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    said = json.loads((old / "1_Pooling/config.json").read_text())
    switches = {
        f"pooling_mode_{mode}": mode.removesuffix("_token").removesuffix("_tokens") == said["pooling_mode"]
        for mode in modes
    }
    (old / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": said["embedding_dimension"], **switches, "include_prompt": True})
    )
    words = json.loads((old / "tokenizer_config.json").read_text())
    length = words.pop("model_max_length")
    (old / "tokenizer_config.json").write_text(json.dumps(words))
    (old / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    return old


LAYOUTS = {
    "mean": ("mean", (), {"similarity_fn_name": "dot"}),
    "cls": ("cls", (), {"similarity_fn_name": "dot", "kind": "bert"}),
    "cosine": ("mean", ("Normalize",), {}),
    "LaBSE": ("cls", ("tanh", "Normalize"), {}),
    "identity": ("mean", ("identity",), {"similarity_fn_name": "dot"}),
    "no bias": ("mean", ("no bias", "Normalize"), {}),
    "prompts": ("mean", ("Normalize",), {"prompts": {"query": "query: ", "document": "passage: "}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_their_folders_give_their_vectors(layout: str, tiny: Callable[..., Path], texts: list[str]) -> None:
    pooling, more, use = LAYOUTS[layout]
    model, folder = write(tiny, pooling, *more, **use)
    long = [*texts, " ".join(texts)]
    queries, passages = model.encode_query(long), model.encode_document(long)
    assert np.abs(queries[0] - queries[1]).max() > 0.01
    for place in (folder, as_before_6(folder)):
        encoder = load(place, device="cpu")
        assert encoder.contract.query_max_length == 24
        np.testing.assert_allclose(encoder.encode_queries(long), queries, atol=1e-5)
        np.testing.assert_allclose(encoder.encode_passages(long), passages, atol=1e-5)
    again = load(save(encoder, folder.parent / "ours"), device="cpu")
    assert again.contract == Contract.read(folder.parent / "ours") == encoder.contract
    np.testing.assert_array_equal(again.encode_queries(long), encoder.encode_queries(long))


def test_a_default_prompt_is_put_before_both_sides(tiny: Callable[..., Path], texts: list[str]) -> None:
    model, folder = write(tiny, "mean", "Normalize", prompts={"any": "any text: "}, default_prompt_name="any")
    encoder = load(folder, device="cpu")
    assert (encoder.contract.query_prefix, encoder.contract.passage_prefix) == ("any text: ", "any text: ")
    np.testing.assert_allclose(encoder.encode_passages(texts), model.encode(texts), atol=1e-5)


def test_the_transformer_may_lie_in_a_folder_of_its_own(tiny: Callable[..., Path], texts: list[str]) -> None:
    model, folder = write(tiny, "cls", "Normalize")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer").mkdir()
    for path in list(folder.glob("*.*")):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(folder / "0_Transformer" / path.name)
    np.testing.assert_allclose(load(folder, device="cpu").encode_queries(texts), model.encode(texts), atol=1e-5)


# From here on the folders are written by hand: what is refused needs no library to write it.
TRANSFORMER, POOLING = "sentence_bert_config.json", "1_Pooling/config.json"
USE, DENSE, NORMALIZE = "config_sentence_transformers.json", "2_Dense/config.json", "3_Normalize/config.json"
OWN = "sentence_transformers.models."
LINEAR = {"in_features": 16, "out_features": 12, "activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.fixture
def folder(tiny: Callable[..., Path]) -> Path:
    path = tiny()
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    rows = [{"path": f"{i}_{kind}" if i else "", "type": OWN + kind} for i, kind in enumerate(kinds)]
    (path / "modules.json").write_text(json.dumps(rows))
    for name, said in ((POOLING, {"pooling_mode": ["cls"]}), (DENSE, LINEAR), (NORMALIZE, {})):
        (path / name).parent.mkdir()
        (path / name).write_text(json.dumps(said))
    torch.save(
        {"linear.weight": torch.zeros(12, 16), "linear.bias": torch.ones(12)}, path / "2_Dense/pytorch_model.bin"
    )
    return path


def test_a_folder_written_by_hand_is_whole(folder: Path) -> None:
    contract = load(folder).contract
    assert (contract.pooling, contract.projection, contract.dimension) == ("cls", "tanh", 12)
    assert "first token, projected through tanh, brought to length one" in contract.in_words()
    assert "xlm-roberta, 12 dimensions" in contract.in_words()


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        (POOLING, {"pooling_mode": "max"}, r"pooling \['max'\] cannot be loaded; known: mean, cls"),
        (POOLING, {"pooling_mode": ["mean", "cls"]}, r"pooling \['mean', 'cls'\] cannot be loaded"),
        (POOLING, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cannot be loaded"),
        (POOLING, {"pooling_mode": 3}, "pooling 3 cannot be loaded"),
        (POOLING, {}, r"pooling \[\] cannot be loaded"),
        (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task fill-mask cannot be followed"),
        (
            TRANSFORMER,
            {"processing_kwargs": {"text": {"truncation": False}}},
            "processing_kwargs .* cannot be followed",
        ),
        (TRANSFORMER, {"config_args": {"hidden_act": "relu"}}, "config_args .* cannot be followed"),
        (TRANSFORMER, {"module_output_name": "other"}, "module_output_name other cannot be followed"),
        (
            TRANSFORMER,
            {"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", 0]}}},
            "modality_config .* cannot be followed",
        ),
        (USE, {"truncate_dim": 7}, "truncate_dim 7 cannot be followed"),
        (TRANSFORMER, {"max_seq_length": -1}, "max_seq_length must be a whole number, got -1"),
        (TRANSFORMER, {"query_length": "long"}, "query_length must be a whole number, got 'long'"),
        (DENSE, LINEAR | {"activation_function": "torch.nn.modules.activation.ReLU"}, r"activation .*ReLU cannot be"),
        (DENSE, LINEAR | {"use_residual": True}, "use_residual cannot be loaded"),
        (DENSE, LINEAR | {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' cannot be"),
        (DENSE, LINEAR | {"out_features": "12"}, "out_features must be a whole number, got '12'"),
        (DENSE, LINEAR | {"out_features": 13}, r"projection\.weight has shape \(12, 16\), .* \(13, 16\)"),
        (NORMALIZE, {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' cannot be"),
        (USE, {"similarity_fn_name": "euclidean"}, "'euclidean' cannot be loaded; known: dot, cosine"),
        (USE, {"prompts": {"query": "q"}, "default_prompt_name": "other"}, "'other' is none of its prompts"),
    ],
)
def test_what_would_give_other_vectors_is_refused(file: str, said: object, message: str, folder: Path) -> None:
    (folder / file).write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_prompt_left_out_of_the_pooling_is_refused_where_there_is_one(folder: Path) -> None:
    (folder / POOLING).write_text(json.dumps({"pooling_mode": "mean", "include_prompt": False}))
    load(folder)
    (folder / USE).write_text(json.dumps({"prompts": {"query": "query: "}}))
    with pytest.raises(CheckpointError, match="include_prompt false cannot be followed"):
        load(folder)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["Transformer", "Pooling", "Normalize", "Dense"], "cannot be loaded in this order"),
        (["Pooling"], "cannot be loaded in this order"),
        ([], "no module cannot be loaded in this order"),
        (["Transformer", "Pooling", "Normalize", "Normalize"], "a second Normalize cannot be loaded"),
        (["Transformer", "Pooling", "LSTM"], "module LSTM cannot be loaded"),
    ],
)
def test_other_orders_are_refused(kinds: list[str], message: str, folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": OWN + kind} for kind in kinds]))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["custom_st.Transformer", "pylate.models.Dense.Dense"])
def test_modules_of_others_are_refused(kind: str, folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules["Transformer" not in kind]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=f"module {kind} is code of another library .* never run here"):
        load(folder)


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({}, None, ("", "")),
        ({"query": "q: "}, None, ("q: ", "")),
        ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),
        ({"query": "q: ", "document": "", "passage": "p: "}, None, ("q: ", "p: ")),
        ({"document": "d: ", "passage": "p: "}, None, ("", "d: ")),
        ({"query": "q: "}, "query", ("q: ", "")),
        ({"query": "q: ", "other": "o: "}, "other", ("q: ", "o: ")),
        ({"query": "", "document": "", "other": "o: "}, "other", ("o: ", "o: ")),
    ],
)
def test_prompts_become_prefixes(
    prompts: dict[str, str], default: str | None, expected: tuple[str, str], folder: Path
) -> None:
    (folder / USE).write_text(json.dumps({"prompts": prompts, "default_prompt_name": default}))
    contract = load(folder).contract
    assert (contract.query_prefix, contract.passage_prefix) == expected


def test_lengths_of_each_side_are_taken_as_far_as_the_model_has_positions(folder: Path) -> None:
    (folder / TRANSFORMER).write_text(json.dumps({"max_seq_length": 500, "query_length": 20}))
    contract = load(folder).contract
    assert (contract.query_max_length, contract.passage_max_length) == (20, 64)
