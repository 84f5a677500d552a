from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from mcontriever.cli import main
from mcontriever.encoder import CheckpointError, Encoder, check, load
from mcontriever.errors import ArtifactError, SettingsError, UsageError

OWN = "sentence_transformers.models."
DOT = {"pooling": "mean", "similarity": "dot"}


def change_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_a_silent_folder_is_asked_about(foreign: Path, encoder: Encoder, texts: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r'give load\(…, pooling="mean" or "cls", similarity="dot" or "cosine"\)'):
        load(foreign)
    with pytest.raises(CheckpointError, match=r"give load\(…, similarity="):
        load(foreign, pooling="cls")
    loaded = load(foreign, device="cpu", **DOT)
    assert loaded.contract == encoder.contract
    np.testing.assert_array_equal(loaded.encode_queries(texts), encoder.encode_queries(texts))
    assert load(foreign, pooling="cls", similarity="cosine").contract.normalise
    with pytest.raises(UsageError, match="poling"):
        load(foreign, **DOT, poling="cls")  # type: ignore[call-arg]


def test_adopting_writes_the_rules_down_once(foreign: Path, tmp_path: Path, texts: list[str]) -> None:
    expected = load(foreign, device="cpu", pooling="cls", similarity="cosine", query_prefix="query: ")
    with pytest.raises(
        CheckpointError, match=rf"mcontriever adopt {foreign} OUT --pooling mean\|cls --similarity dot\|cos"
    ):
        main(["adopt", str(foreign), str(tmp_path / "out")])
    words = ["--pooling", "cls", "--similarity=cosine", "--query_prefix", "query: ", "--passage_max_length", "20"]
    main(["adopt", str(foreign), str(tmp_path / "out"), *words])
    adopted = load(tmp_path / "out", device="cpu")
    assert adopted.contract == dataclasses.replace(expected.contract, passage_max_length=20)
    np.testing.assert_array_equal(adopted.encode_queries(texts), expected.encode_queries(texts))
    assert check(tmp_path / "out") == adopted.contract
    with pytest.raises(SettingsError, match="pooling must be one of mean, cls, got 'max'"):
        main(["adopt", str(foreign), str(tmp_path / "other"), "--pooling", "max"])
    with pytest.raises(UsageError, match="has a contract.*leave out pooling"):
        main(["adopt", str(tmp_path / "out"), str(tmp_path / "other"), "--pooling", "cls"])
    assert not (tmp_path / "other").exists()


def test_check_finds_what_load_would(ours: Path, foreign: Path) -> None:
    assert check(foreign, **DOT) == load(foreign, device="cpu", **DOT).contract  # type: ignore[arg-type]
    change_config(foreign, vocab_size=50)
    with pytest.raises(CheckpointError, match="105 ids, the model 50"):
        check(foreign, **DOT)  # type: ignore[arg-type]
    (ours / "model.safetensors").write_bytes((ours / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="manifest says"):
        check(ours)


def sentence_transformer(folder: Path, modules: list[str], pooling: str = "cls_token", **use: object) -> None:
    places = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(modules)]
    rows = [{"path": place, "type": OWN + kind} for place, kind in zip(places, modules, strict=True)]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48, "do_lower_case": True}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(use))


def test_sentence_transformers_files_are_read(foreign: Path) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    sentence_transformer(foreign, ["Transformer", "Pooling", "Normalize"], prompts=prompts)
    contract = load(foreign).contract
    assert (contract.pooling, contract.normalise, contract.similarity) == ("cls", True, "cosine")
    assert (contract.query_prefix, contract.passage_prefix) == ("query: ", "passage: ")
    assert (contract.query_max_length, contract.passage_max_length, contract.lowercase) == (48, 48, True)


def test_sentence_transformers_without_normalisation(foreign: Path) -> None:
    sentence_transformer(foreign, ["Transformer", "Pooling"], "mean_tokens", similarity_fn_name="dot")
    contract = load(foreign).contract
    assert (contract.pooling, contract.normalise, contract.similarity) == ("mean", False, "dot")
    (foreign / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"give load\(…, similarity="):
        load(foreign)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "WordWeights"], "cls_token", "module WordWeights cannot be loaded"),
        (["Transformer", "Pooling"], "max_tokens", r"max_tokens.*cannot be loaded"),
    ],
)
def test_other_modules_are_refused(foreign: Path, modules: list[str], pooling: str, message: str) -> None:
    sentence_transformer(foreign, modules, pooling)
    with pytest.raises(CheckpointError, match=message):
        load(foreign)


@pytest.mark.parametrize(
    "modules",
    [
        ["Transformer"],
        [{"path": "1_Pooling"}],
        [{"type": "sentence_transformers.models.Pooling"}],
        [{"type": "sentence_transformers.models.Pooling", "path": 3}],
        [{"type": "sentence_transformers.models.Pooling", "path": "../outside"}],
        [{"type": "sentence_transformers.models.Pooling", "path": "a/../../outside"}],
        [{"type": "sentence_transformers.models.Pooling", "path": "..\\outside"}],
        [{"type": "sentence_transformers.models.Pooling", "path": "/etc"}],
    ],
)
def test_modules_that_make_no_sense_or_lead_outside_are_refused(foreign: Path, modules: list[object]) -> None:
    sentence_transformer(foreign, [])
    outside = foreign.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (foreign / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"modules\.json: (a module must have|names)") as error:
        load(foreign, similarity="dot")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["../{name}", "/{name}", 3])
def test_weights_outside_the_folder_are_not_read(foreign: Path, part: object) -> None:
    weights = foreign.rename(foreign.parent / "moved") / "model.safetensors"
    shutil.copytree(weights.parent, foreign)
    (foreign / "model.safetensors").unlink()
    named = part.format(name=f"moved/{weights.name}") if isinstance(part, str) else part
    content = {"weight_map": dict.fromkeys(load_file(weights), named)}
    (foreign / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json: names .*; expected a path inside"):
        load(foreign, **DOT)  # type: ignore[arg-type]
    (foreign / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map must say"):
        load(foreign, **DOT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length must be a whole number, got 'long'"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "prompts must be texts by name"),
        ("config_sentence_transformers.json", {"prompts": {"query": None}}, "prompts must be texts by name"),
    ],
)
def test_values_of_another_kind_are_named(foreign: Path, file: str, content: object, said: str) -> None:
    sentence_transformer(foreign, ["Transformer", "Pooling"])
    (foreign / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=said):
        load(foreign, similarity="dot")


def test_an_old_pickled_bert_is_read(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=20,
    )
    theirs = BertForMaskedLM(config).eval()
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.half()
        for name, tensor in theirs.state_dict().items()
    }
    weights["bert.pooler.dense.weight"] = torch.zeros(16, 16)
    weights["bert.embeddings.position_ids"] = torch.arange(20)[None]
    config.to_json_file(tmp_path / "config.json")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path, device="cpu", pooling="cls", similarity="dot")
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    expected = theirs.half().float().bert(ids).last_hidden_state[0, 0].detach().numpy()
    np.testing.assert_allclose(loaded.encode_queries(["a b c"])[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("index", "part", "write"),
    [
        ("model.safetensors.index.json", "model-{}.safetensors", save_file),
        ("pytorch_model.bin.index.json", "pytorch_model-{}.bin", torch.save),
    ],
)
def test_weights_in_several_files_are_read(
    foreign: Path, encoder: Encoder, texts: list[str], index: str, part: str, write: Callable[[Any, Path], object]
) -> None:
    weights = load_file(foreign / "model.safetensors")
    (foreign / "model.safetensors").unlink()
    places = {name: part.format(number % 2) for number, name in enumerate(weights)}
    for file in set(places.values()):
        write({name: tensor for name, tensor in weights.items() if places[name] == file}, foreign / file)
    (foreign / index).write_text(json.dumps({"weight_map": places}))
    loaded = load(foreign, device="cpu", **DOT)
    np.testing.assert_array_equal(loaded.encode_queries(texts), encoder.encode_queries(texts))
    (foreign / part.format(1)).unlink()
    with pytest.raises(CheckpointError, match=re.escape(part.format(1))):
        load(foreign, **DOT)


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return harm


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])


def pickle_in(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Path("anything")}, folder / "pytorch_model.bin")


BIAS = "encoder.layer.0.output.dense.bias"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (rewrite(lambda weights: weights.pop(BIAS)), rf"lack {BIAS} \(1 in all\)"),
        (rewrite(lambda weights: weights.update({"projection": torch.zeros(1)})), "have unknown projection"),
        (rewrite(lambda weights: weights.update({BIAS: torch.zeros(7)})), rf"{BIAS} has shape \(7,\).*\(32,\)"),
        (truncate, r"model\.safetensors: damaged or incomplete"),
        (pickle_in, r"pytorch_model\.bin: damaged, or holds more than tensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in it"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda folder: change_config(folder, model_type="gpt2"), r"model_type 'gpt2' cannot be loaded"),
        (lambda folder: change_config(folder, auto_map={"AutoModel": "x.Y"}), r"never run here"),
        (lambda folder: change_config(folder, vocab_size=50), r"105 ids, the model 50"),
    ],
)
def test_a_foreign_folder_that_does_not_fit(foreign: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(foreign)
    with pytest.raises(CheckpointError, match=message) as error:
        load(foreign, **DOT)
    assert "\n" not in str(error.value)
    assert str(foreign) in str(error.value)
