from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

import mcontriever
from mcontriever import artifact
from mcontriever.encoder import CheckpointError, Encoder, checkpoint, load, save
from mcontriever.errors import ArtifactError, UsageError

DOT = {"pooling": "mean", "similarity": "dot"}


@pytest.fixture(scope="module")
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


def change_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_what_is_saved_is_loaded(encoder: Encoder, ours: Path, texts: list[str]) -> None:
    loaded = mcontriever.load(ours, device="cpu")
    assert loaded.contract == encoder.contract
    assert loaded.source == str(ours)
    assert not loaded.training
    np.testing.assert_array_equal(loaded.encode_queries(texts), encoder.encode_queries(texts))
    assert (ours / "recipe.toml").read_text() == "seed = 1\n"
    assert artifact.open_artifact(ours, "checkpoint").meta == {"architecture": "xlm-roberta", "steps": 7}


def test_the_same_encoder_gives_the_same_bytes(encoder: Encoder, tmp_path: Path) -> None:
    first, second = (save(encoder, tmp_path / name) for name in ("a", "b"))
    prints = {artifact.open_artifact(path, "checkpoint").fingerprint for path in (first, second)}
    assert len(prints) == 1


def test_a_loaded_checkpoint_is_saved_as_it_was(ours: Path, tmp_path: Path) -> None:
    again = save(load(ours, device="cpu"), tmp_path / "again")
    for name in ("model.safetensors", "config.json", "contract.json"):
        assert (again / name).read_bytes() == (ours / name).read_bytes(), name


def test_transformers_reads_our_folder_to_the_same_vectors(encoder: Encoder, ours: Path, texts: list[str]) -> None:
    model = AutoModel.from_pretrained(ours).eval()
    batch = AutoTokenizer.from_pretrained(ours)(
        texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(encoder.encode_queries(texts), expected, atol=1e-5)


def test_weights_may_come_from_elsewhere(encoder: Encoder, tmp_path: Path) -> None:
    masters = {name: tensor + 1 for name, tensor in encoder.state_dict().items()}
    loaded = load(save(encoder, tmp_path / "a", weights=masters), device="cpu")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, masters[name])
    masters.pop("model.embeddings.LayerNorm.bias")
    with pytest.raises(ValueError, match=r"embeddings\.LayerNorm\.bias"):
        save(encoder, tmp_path / "b", weights=masters)
    assert not (tmp_path / "b").exists()


def test_an_existing_folder_is_kept_unless_told(encoder: Encoder, ours: Path) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        save(encoder, ours)
    save(encoder, ours, overwrite=True)
    assert not (ours / "recipe.toml").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "contract.json", "recipe.toml"])
@pytest.mark.parametrize("harm", ["remove", "truncate", "flip"])
def test_harm_to_any_file_is_found(ours: Path, name: str, harm: str) -> None:
    content = bytearray((ours / name).read_bytes())
    if harm == "remove":
        (ours / name).unlink()
    elif harm == "truncate":
        (ours / name).write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        (ours / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name) as error:
        load(ours)
    assert "\n" not in str(error.value)


def test_a_folder_without_its_manifest_is_not_whole(ours: Path) -> None:
    (ours / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load(ours)


def test_a_contract_is_not_overridden(ours: Path) -> None:
    with pytest.raises(UsageError, match="leave out pooling"):
        load(ours, pooling="cls")


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


def sentence_transformer(folder: Path, modules: list[str], pooling: str = "cls_token", **use: object) -> None:
    rows = [{"idx": i, "path": f"{i}_{kind}", "type": f"x.models.{kind}"} for i, kind in enumerate(modules)]
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
        (["Transformer", "Pooling", "Dense"], "cls_token", "module Dense cannot be loaded"),
        (["Transformer", "Pooling"], "max_tokens", r"max_tokens.*cannot be loaded"),
    ],
)
def test_other_modules_are_refused(foreign: Path, modules: list[str], pooling: str, message: str) -> None:
    sentence_transformer(foreign, modules, pooling)
    with pytest.raises(CheckpointError, match=message):
        load(foreign)


def test_hub_names_are_fetched_and_the_registry_knows_their_rules(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        checkpoint, "snapshot_download", lambda name, allow_patterns: (asked.append(name), str(foreign))[1]
    )
    contract = load("castorini/mdpr-tied-pft-msmarco", passage_max_length=60).contract
    assert asked == ["castorini/mdpr-tied-pft-msmarco"]
    assert (contract.pooling, contract.similarity, contract.passage_max_length) == ("cls", "dot", 60)


def test_only_tensors_are_fetched_when_there_are_safetensors(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns: list[list[str]] = []
    monkeypatch.setattr(
        checkpoint, "snapshot_download", lambda name, allow_patterns: (patterns.append(allow_patterns), str(foreign))[1]
    )
    load("facebook/contriever", query_max_length=60, passage_max_length=60)
    assert not any("pytorch_model.bin" in pattern for pattern in patterns)
    torch.save(load_file(foreign / "model.safetensors"), foreign / "pytorch_model.bin")
    (foreign / "model.safetensors").unlink()
    load("facebook/contriever", query_max_length=60, passage_max_length=60)
    assert "pytorch_model.bin" in patterns[-1]


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("cannot find an appropriate cached snapshot\nand a second line")

    monkeypatch.setattr(checkpoint, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"^facebook/mcontriever: no such folder, and the hub") as error:
        load("facebook/mcontriever")
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="no such folder; expected"):
        load("/nowhere/at/all")


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


def test_weights_in_several_files_are_read(foreign: Path, encoder: Encoder, texts: list[str]) -> None:
    weights = load_file(foreign / "model.safetensors")
    (foreign / "model.safetensors").unlink()
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(weights)}
    for part in set(places.values()):
        save_file({name: tensor for name, tensor in weights.items() if places[name] == part}, foreign / part)
    (foreign / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    loaded = load(foreign, device="cpu", **DOT)
    np.testing.assert_array_equal(loaded.encode_queries(texts), encoder.encode_queries(texts))
    (foreign / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors"):
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


def test_precision_is_checked(ours: Path) -> None:
    assert load(ours, precision="bf16").precision == "bf16"
    with pytest.raises(UsageError, match="fp32 or bf16"):
        load(ours, precision="fp16")
