"""Weights that are no numbers, and tokenizers that are another model's, never answer a query."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcontriever.corpus.tokenizer import Tokenizer
from mcontriever.encoder import CheckpointError, Encoder, load, save
from mcontriever.encoder.weights import fill

BIAS = "encoder.layer.1.output.dense.bias"
DOT = {"pooling": "mean", "similarity": "dot"}


def configure(folder: Path, change: dict[str, object]) -> None:
    content = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "big"}, r"config\.json: not a configuration of xlm-roberta .*'hidden_size'"),
        ({"max_position_embeddings": None}, r"config\.json: not a configuration of xlm-roberta .*max_position"),
        ({"pad_token_id": None}, r"config\.json: not a configuration of xlm-roberta"),
        ({"num_attention_heads": 3}, r"hidden size \(16\) is not a multiple"),
        ({"hidden_size": -4}, "negative dimension"),
        ({"hidden_size": 32}, r"has shape \(.*16,?\), its config\.json says \(.*32"),
        ({"num_hidden_layers": 3}, r"its weights lack encoder\.layer\.2"),
        ({"vocab_size": 120}, r"word_embeddings\.weight has shape \(105, 16\), its config\.json says \(120, 16\)"),
    ],
)
def test_a_configuration_of_another_model_is_one_line(
    change: dict[str, object], message: str, tiny: Callable[..., Path]
) -> None:
    folder = tiny()
    configure(folder, change)
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder, **DOT)  # type: ignore[arg-type]
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tiny: Callable[..., Path]) -> None:
    folder = tiny()
    weights = load_file(folder / "model.safetensors")
    weights[BIAS][3] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{BIAS} holds 1 values that are NaN or infinite") as error:
        load(folder, **DOT)  # type: ignore[arg-type]
    assert str(folder) in str(error.value)


def test_our_own_checkpoints_are_looked_through_as_well(encoder: Encoder, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    weights["model.embeddings.word_embeddings.weight"][:, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight holds 105 values"):
        load(save(encoder, tmp_path / "broken", weights=weights))


def test_numbers_too_large_to_sum_are_still_numbers(encoder: Encoder) -> None:
    weights = {name.removeprefix("model."): tensor.clone() for name, tensor in encoder.state_dict().items()}
    weights["embeddings.word_embeddings.weight"][:] = 3e38
    fill(encoder, weights, "here")
    assert encoder.state_dict()["model.embeddings.word_embeddings.weight"].min() == torch.tensor(3e38)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights_are_refused(file: str, tiny: Callable[..., Path]) -> None:
    folder = tiny(pickled=file.endswith(".bin"))
    for keep in (-8, 100, 0):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match=f"{file}: damaged"):
            load(folder, **DOT)  # type: ignore[arg-type]
        (folder / file).write_bytes(content)


def test_another_models_tokenizer_is_refused(tiny: Callable[..., Path], texts: list[str]) -> None:
    xlm, bert = tiny("xlm"), tiny("bert", "bert", words="bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (xlm / name).unlink(missing_ok=True)
    (xlm / "sentencepiece.bpe.model").unlink(missing_ok=True)
    shutil.copy(bert / "vocab.txt", xlm)
    with pytest.raises(CheckpointError, match=r"the tokenizer (pads with id 0, the model with 1|knows \d+ ids)"):
        load(xlm, **DOT)  # type: ignore[arg-type]
    Tokenizer.train([*texts, *map(str.upper, texts)], 125).save(tiny("larger"))
    with pytest.raises(CheckpointError, match="the tokenizer knows 125 ids, the model 105"):
        load(xlm.parent / "larger", **DOT)  # type: ignore[arg-type]


def as_int8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {BIAS: weights[BIAS].to(torch.int8)}


def under_two_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {f"roberta.{BIAS}": weights[BIAS] + 1}


@pytest.mark.parametrize(("change", "message"), [(as_int8, f"{BIAS} in int8"), (under_two_names, f"{BIAS} twice")])
def test_weights_that_would_be_taken_for_others_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, tiny: Callable[..., Path]
) -> None:
    folder = tiny()
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder, **DOT)  # type: ignore[arg-type]
    assert str(folder) in str(error.value)


def test_one_weight_in_two_files_is_refused(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "a.safetensors")
    save_file({BIAS: weights[BIAS] + 1}, folder / "b.safetensors")
    places = dict.fromkeys(weights, "a.safetensors") | {BIAS: "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=f"{BIAS} lies in two files"):
        load(folder, **DOT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(2)},
        {"a": torch.zeros(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")},
        [torch.zeros(2)],
    ],
)
def test_pickles_of_other_tensors_are_refused(content: object, tiny: Callable[..., Path]) -> None:
    folder = tiny(pickled=True)
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: ") as error:
        load(folder, **DOT)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "is_decoder true cannot be loaded"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a number above 0, got nan"),
        ({"model_type": ["bert"]}, r"model_type \['bert'\] cannot be loaded"),
        ({"pooling": ["average"]}, r"pooling \['average'\] cannot be loaded"),
    ],
)
def test_settings_that_change_vectors_are_refused(
    change: dict[str, object], message: str, tiny: Callable[..., Path]
) -> None:
    folder = tiny()
    configure(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder, **DOT)  # type: ignore[arg-type]


def test_kernels_that_a_configuration_names_are_not_taken(tiny: Callable[..., Path], texts: list[str]) -> None:
    folder = tiny()
    expected = load(folder, **DOT).encode_queries(texts)  # type: ignore[arg-type]
    configure(folder, {"_attn_implementation": "flash_attention_2"})
    assert (load(folder, **DOT).encode_queries(texts) == expected).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(("rule", "value"), [("normalise", "yes"), ("query_prefix", None), ("query_max_length", "5")])
def test_rules_of_another_kind_are_refused(rule: str, value: object, tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=f"{rule} must be "):
        load(tiny(), **(DOT | {rule: value}))  # type: ignore[arg-type]
